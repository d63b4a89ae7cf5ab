package lease

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asCommand is the environment variable that makes this test binary covey-lease, with the socket's path.
const asCommand = "COVEY_LEASE_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asCommand); socket != "" {
		code, err := Run(socket, os.Args[1:])
		if err != nil {
			os.Stderr.WriteString(err.Error())
		}
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

func listen(t *testing.T) (*Keeper, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "lease.sock")
	k, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k, socket
}

func awaitHeld(t *testing.T, k *Keeper, want int) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); k.Held() != want; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d leases are held, want %d", k.Held(), want)
		}
	}
}

func TestALeaseLastsAsLongAsItsHolder(t *testing.T) {
	k, socket := listen(t)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	awaitHeld(t, k, 1)
	c.Close()
	awaitHeld(t, k, 0)
}

func command(socket string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asCommand+"="+socket)
	return cmd
}

func TestACommandHoldsALeaseAndItsExitCodeComesThrough(t *testing.T) {
	k, socket := listen(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143} {
		err := command(socket, "/bin/sh", "-c", script).Run()
		if got := exitCode(err); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
	if got := exitCode(command(socket, "no-such-command").Run()); got != 127 {
		t.Errorf("a command that is not there: %d", got)
	}
	if got := exitCode(command(socket).Run()); got != 2 {
		t.Errorf("no command: %d", got)
	}
	in := command(socket, "cat")
	w, err := in.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Start(); err != nil {
		t.Fatal(err)
	}
	awaitHeld(t, k, 1)
	w.Close()
	if err := in.Wait(); err != nil {
		t.Error(err)
	}
	awaitHeld(t, k, 0)
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

func TestSignalsArePassedOnToTheCommand(t *testing.T) {
	k, socket := listen(t)
	cmd := command(socket, "/bin/sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitHeld(t, k, 1)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := exitCode(cmd.Wait()); got != 3 {
		t.Errorf("exit code %d", got)
	}
	awaitHeld(t, k, 0)
}

func TestWithoutGuestdThereIsNoLease(t *testing.T) {
	if code, err := Run(filepath.Join(t.TempDir(), "none"), []string{"true"}); code != 1 || err == nil {
		t.Errorf("%d, %v", code, err)
	}
}

func TestLeasesAreBounded(t *testing.T) {
	k, socket := listen(t)
	var all []net.Conn
	for range maxHeld + 20 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	last := all[len(all)-1]
	if _, err := last.Read(make([]byte, 1)); err == nil || k.Held() != maxHeld {
		t.Errorf("the last one reads %v, %d are held", err, k.Held())
	}
	for _, c := range all {
		c.Close()
	}
	awaitHeld(t, k, 0)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	awaitHeld(t, k, 1)
}

func TestALeaseTakenWhileThereAreNoDescriptorsCountsOnceThereAre(t *testing.T) {
	k, socket := listen(t)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	next, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	limit := before
	limit.Cur = uint64(next.Fd()) + 1 // One descriptor, which the client gets.
	next.Close()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", socket)
	<-time.After(3 * acceptAgain)
	held := k.Held()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err != nil || held != 0 {
		t.Fatalf("%v, %d are held without a descriptor", err, held)
	}
	defer c.Close()
	awaitHeld(t, k, 1)
}
