package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one process of a mesh. It outlives the process that started it; pid and start time together name it for good.
type Process struct {
	// Name is unique in the mesh: "consul", "sandboxd", "hostagentd-a".
	Name string `json:"name"`
	// PID and StartTime (clock ticks since boot) identify it.
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
	// Path, Args and Log say how to start it again.
	Path string   `json:"path"`
	Args []string `json:"args"`
	Log  string   `json:"log"`
	// UID and GID it runs as; 0 means the starter's own.
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
	// NetNS is the path of the network namespace it runs in; empty means the starter's own.
	NetNS string `json:"net_ns,omitempty"`
	// Env is added to the starter's environment.
	Env []string `json:"env,omitempty"`
}

// start starts the process in a session of its own, with its output appended to its log.
func (p *Process) start() error {
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.GID)}
	}
	if err := inside(p.NetNS, cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.PID = cmd.Process.Pid
	if p.StartTime, err = startTime(p.PID); err != nil {
		return fmt.Errorf("%s ended at once; its log %s ends with:\n%s", p.Name, p.Log, logTail(p.Log))
	}
	// Reaps it if it ends while this process lives; the goroutine ends with the child.
	go cmd.Wait()
	return nil
}

// Alive tells whether the process still runs.
func (p *Process) Alive() bool {
	t, err := startTime(p.PID)
	return err == nil && t == p.StartTime
}

// Signal sends a signal, unless the process has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	fd, err := p.open()
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// open returns a pidfd; an error where the process has ended.
func (p *Process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, err
	}
	if !p.Alive() {
		unix.Close(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// wait waits for the process to end.
func (p *Process) wait(ctx context.Context) error {
	fd, err := p.open()
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return context.Cause(ctx)
}

// stop ends the process: SIGTERM, and SIGKILL after grace.
func (p *Process) stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	soft, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if p.wait(soft) == nil {
		return nil
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.wait(ctx)
}

// startTime reads field 22 of /proc/PID/stat; an error for a process that is gone or a zombie.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name, field 2, is in parentheses and may contain anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// logTail returns the last lines of a log.
func logTail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	t := tail{}
	t.add(b)
	return t.String()
}
