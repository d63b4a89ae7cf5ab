package boot

import (
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// serverEnv keeps the runtime from interrupting guestd by signals: under emulation code that runs for the first time is so
// slow that it would do so all the time.
var serverEnv = []string{"GODEBUG=asyncpreemptoff=1", "GOGC=400"}

// supervise runs the server for ever and reaps every orphan; SIGTERM, from the server, ends the VM.
func supervise() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	var stopping atomic.Bool
	go func() {
		<-stop
		stopping.Store(true)
		shutDown()
	}()
	for delay := time.Duration(0); ; delay = min(delay+100*time.Millisecond, 2*time.Second) {
		time.Sleep(delay) // nothing else is left to do for this process
		began := time.Now()
		p, err := os.StartProcess("/proc/self/exe", []string{"guestd", "serve"}, &os.ProcAttr{
			Dir: "/", Env: serverEnv, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		})
		if err != nil {
			say("cannot start guestd: %v", err)
			continue
		}
		status := reapUntil(p.Pid)
		if stopping.Load() {
			select {} // shutDown ends the machine
		}
		say("guestd ended (%v); starting it again", status)
		if time.Since(began) > 10*time.Second {
			delay = 0
		}
	}
}

// reapUntil waits for any child until pid itself has ended, and returns how.
func reapUntil(pid int) string {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err.Error()
		case got == pid && ws.Signaled():
			return "signal " + ws.Signal().String()
		case got == pid:
			return fmt.Sprintf("exit code %d", ws.ExitStatus())
		}
	}
}

// farewell is how long programs get to end by themselves.
const farewell = 300 * time.Millisecond

// shutDown ends every program, then the VM.
func shutDown() {
	say("shutting down")
	_ = unix.Kill(-1, unix.SIGTERM) // all but init itself
	time.Sleep(farewell)
	_ = unix.Kill(-1, unix.SIGKILL)
	end()
}

// end syncs and resets the machine, which ends the VM: VMMs run guests without reboot.
func end() {
	unix.Sync()
	// Whatever still holds a file open for writing makes this fail; then the journal is replayed at the next boot.
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
