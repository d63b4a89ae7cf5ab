// Package pagertest stands in for a VMM: touchers are processes that map memory, hand a userfaultfd to the pager and touch pages as told.
//
// A process of its own is needed, because a thread that waits for a page must not be one of those that serve it. The toucher is the
// test's own executable: TestMain, or main, begins with Main.
package pagertest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

const roleVariable = "COVEY_PAGERTEST_TOUCHER"

// Setup says what a toucher maps.
type Setup struct {
	// Size of the memory, in bytes.
	Size int64
	// Socket is the pager's.
	Socket string
	// Anonymous memory, as Firecracker has; else the image is mapped privately.
	Anonymous bool
	// Removes asks for REMOVE events.
	Removes bool
	// Regions cuts the memory into so many; one if 0.
	Regions int
	// CPU to run on, counted from 1; any if 0.
	CPU int
}

// Order tells a toucher what to do with [Off, Off+Len).
type Order struct {
	// Do is "touch" (read a byte of every Stride), "check" (every page must be Pattern's; Threads at once, in random order),
	// "read" (one byte), "write" (Byte to every byte), "discard" (MADV_DONTNEED), "churn" (Threads at once, each on a part of its own: check
	// a page, discard what is around it, check that it is zeros, write).
	Do      string
	Off     int64
	Len     int64
	Stride  int64
	Pattern Pattern
	Threads int
	Byte    byte
	// Latencies asks for the time that each touch took.
	Latencies bool
}

// Answer is a toucher's.
type Answer struct {
	Err       string
	Byte      byte
	Nanos     int64
	Latencies []int64
	// Wrong counts pages that are not as they should be; First is the first of them.
	Wrong int
	First int64
}

// Toucher is a running one.
type Toucher struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	// Base is where its memory is.
	Base uint64
}

// Start starts a toucher, which connects to the pager. It ends with the context, or by Close. image is nil for anonymous memory.
func Start(ctx context.Context, setup Setup, image *os.File) (*Toucher, error) {
	text, err := json.Marshal(setup)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	// A thread in a page fault holds one of Go's processors and cannot be stopped for the collector.
	cmd.Env = append(os.Environ(), roleVariable+"="+string(text), "GOMAXPROCS=64", "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	if image != nil {
		cmd.ExtraFiles = []*os.File{image}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &Toucher{cmd: cmd, in: in, out: json.NewDecoder(out)}
	var hello greeting
	if err := t.out.Decode(&hello); err != nil || hello.Err != "" {
		t.Close()
		return nil, fmt.Errorf("toucher did not start: %s, %v", hello.Err, err)
	}
	t.Base = hello.Base
	return t, nil
}

// PID is the process's.
func (t *Toucher) PID() int { return t.cmd.Process.Pid }

// Give passes an order on; Take takes the answer. Ask does both.
func (t *Toucher) Give(o Order) error { return json.NewEncoder(t.in).Encode(o) }

// Take takes the answer to the order given last.
func (t *Toucher) Take() (Answer, error) {
	var a Answer
	if err := t.out.Decode(&a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, fmt.Errorf("toucher: %s", a.Err)
	}
	return a, nil
}

// Ask has an order carried out.
func (t *Toucher) Ask(o Order) (Answer, error) {
	if err := t.Give(o); err != nil {
		return Answer{}, err
	}
	return t.Take()
}

// Close kills it.
func (t *Toucher) Close() {
	t.cmd.Process.Kill()
	_ = t.cmd.Wait() // it was killed
}
