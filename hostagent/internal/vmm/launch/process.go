package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// cldExited is the si_code of a child that called exit.
const cldExited = 1

// Process is one VMM process. Its methods are safe for concurrent use.
type Process struct {
	pid   int
	start uint64
	// pidfd is watched by the goroutine that closes done; Close closes both files.
	pidfd, words *os.File
	done         chan struct{}
	watcher      sync.WaitGroup
	exit         vmm.Exit // written before done is closed
	closing      sync.Once
}

// adopt takes over a child that was just started. It ends the child on failure.
func adopt(pid, pidfd int, words *os.File) (*Process, error) {
	start, _, err := stat(pid)
	if err == nil {
		err = unix.SetNonblock(pidfd, true)
	}
	if err != nil {
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED, nil)
		unix.Close(pidfd)
		return nil, err
	}
	return watch(&Process{pid: pid, start: start, words: words}, pidfd), nil
}

// Reopen opens a process that a former agent started. vmm.ErrGone where it has ended.
func Reopen(pid int, start uint64) (*Process, error) {
	gone := fmt.Errorf("process %d that started at tick %d: %w", pid, start, vmm.ErrGone)
	if pid <= 0 {
		return nil, gone
	}
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// Asked after the pidfd was opened: that one cannot come to mean another process.
	if now, alive, err := stat(pid); err != nil || now != start || !alive {
		unix.Close(pidfd)
		return nil, gone
	}
	return watch(&Process{pid: pid, start: start, words: findWords(pid)}, pidfd), nil
}

func watch(p *Process, pidfd int) *Process {
	p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	p.done = make(chan struct{})
	p.watcher.Go(func() {
		if p.wait() {
			p.exit = p.ended()
			close(p.done)
		}
	})
	return p
}

// wait returns true when the process has ended, false after Close.
func (p *Process) wait() bool {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	err = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ended = err == nil && n > 0
		return ended
	})
	return err == nil && ended
}

// ended says how the process ended, and lets the kernel forget it.
func (p *Process) ended() vmm.Exit {
	e := vmm.Exit{Time: time.Now(), Code: -1}
	code, signal, known := p.status()
	switch {
	case !known:
		e.Reason = "the VMM has ended; how is not known, because a former host agent had started it"
	case signal != 0:
		e.Signal = signal
		e.Reason = fmt.Sprintf("the VMM was killed by signal %d (%s)", signal, unix.SignalName(unix.Signal(signal)))
	default:
		e.Code = code
		e.Reason = fmt.Sprintf("the VMM exited with code %d", code)
	}
	return e
}

// status is what the kernel knows of the end. A process that another agent had started is not this one's child.
func (p *Process) status() (code, signal int, known bool) {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	var status unix.WaitStatus
	err = conn.Control(func(fd uintptr) {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT} // since Linux 6.15
		if status, known = reap(int(fd)); known {
			return
		}
		if unix.IoctlPidfdInfo(int(fd), &info) == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			status, known = unix.WaitStatus(info.Exit_code), true
		}
	})
	if err != nil || !known {
		return 0, 0, false
	}
	if status.Signaled() {
		return -1, int(status.Signal()), true
	}
	return status.ExitStatus(), 0, true
}

// reap takes the status of a child that has ended.
func reap(pidfd int) (unix.WaitStatus, bool) {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG, nil); err != nil || info.Signo == 0 {
		return 0, false
	}
	// siginfo_t of SIGCHLD: si_pid, si_uid, si_status follow the three common fields and four bytes of padding.
	status := *(*int32)(unsafe.Add(unsafe.Pointer(&info), 24))
	if info.Code == cldExited {
		return unix.WaitStatus(status << 8), true
	}
	return unix.WaitStatus(status), true // killed, or killed and dumped
}

// PID is the process's id, and StartTime its start in clock ticks since boot.
func (p *Process) PID() int { return p.pid }

// StartTime: see PID.
func (p *Process) StartTime() uint64 { return p.start }

// Done is closed when the process has ended; never after Close.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended; the zero Exit while it runs.
func (p *Process) Exit() vmm.Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return vmm.Exit{}
	}
}

// Kill ends the process and returns when it is gone.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d was killed but has not ended yet: %w", p.pid, context.Cause(ctx))
	}
}

// Signal sends a signal. Sending one to a process that has ended is no error.
func (p *Process) Signal(sig unix.Signal) error {
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		cerr := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		err = errors.Join(err, cerr)
	}
	if err == nil || errors.Is(err, unix.ESRCH) {
		return nil
	}
	select {
	case <-p.done:
		return nil
	default:
		return fmt.Errorf("signal %d to process %d: %w", sig, p.pid, err)
	}
}

// Close lets go of the process, which lives on if it has not ended.
func (p *Process) Close() {
	p.closing.Do(func() {
		p.pidfd.SetReadDeadline(time.Unix(1, 0))
		p.watcher.Wait()
		p.pidfd.Close()
		if p.words != nil {
			p.words.Close()
		}
	})
}

// AnonymousBytes is the memory that only this process has: RssAnon of /proc/PID/status.
func (p *Process) AnonymousBytes() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/PID/status has no RssAnon")
}

// stat reads a process's start time, field 22 of /proc/PID/stat, and whether it has not ended yet.
func stat(pid int) (start uint64, alive bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	// The name, in parentheses, may hold anything; field 3, the state, follows it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] != "Z" && fields[0] != "X", err
}
