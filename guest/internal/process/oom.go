package process

import (
	"bytes"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// oomCounter counts the processes that the guest's kernel has killed for lack of memory.
//
// It reads the kernel's log, which nearly always has nothing new: one system call that fails. Rejected: oom_kill in
// /proc/vmstat, for which the kernel prints 150 numbers, two milliseconds for each command under emulation.
type oomCounter struct {
	mu    sync.Mutex
	fd    int    // of /dev/kmsg, behind what was read; -1 where there is none; guarded by mu
	kills uint64 // guarded by mu
	buf   []byte // guarded by mu
}

// kmsgRecord is the longest record that /dev/kmsg gives (CONSOLE_EXT_LOG_MAX of the kernel's printk).
const kmsgRecord = 8 << 10

func newOOMCounter() *oomCounter {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
	}
	if err != nil {
		return &oomCounter{fd: -1} // nothing is counted
	}
	return &oomCounter{fd: fd, buf: make([]byte, kmsgRecord)}
}

// read takes in what is new and returns the number of kills so far.
func (c *oomCounter) read() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.fd >= 0 {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case err == unix.EPIPE || err == unix.EINTR: // records were overwritten before they were read
		case err != nil || n <= 0:
			return c.kills
		case isKill(c.buf[:n]):
			c.kills++
		}
	}
	return c.kills
}

// isKill tells the record of a kill: "priority,sequence,time,flags;Out of memory: Killed process ...", or for a cgroup
// "Memory cgroup out of memory: Killed process ...". The kernel's own records have a priority below 8: what a program wrote
// to the log has its facility added (Documentation/ABI/testing/dev-kmsg).
func isKill(record []byte) bool {
	return len(record) > 1 && record[1] == ',' && bytes.Contains(record, []byte("ut of memory: Killed process "))
}

func (c *oomCounter) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// ownScore is the file with what this process adds to the kernel's reasons to kill it for lack of memory, which its children inherit.
const ownScore = "/proc/self/oom_score_adj"

// exposure undoes, for commands, what keeps guestd from being killed for lack of memory: guestd itself goes without that for the moment in which
// it starts one. Rejected: writing the command's score once it is started, because what it has started by then keeps guestd's: nobody could kill that,
// and a kernel that can kill nobody panics.
type exposure struct {
	mu       sync.Mutex // guards all below
	starting int
	own      []byte // the score between starts, which stays what it was at the first; nil: not known
}

// begin precedes a start, which end follows. Where the score cannot be written it is not guestd's own either: that is written in the same way.
func (e *exposure) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.starting++; e.starting > 1 {
		return
	}
	if e.own == nil {
		e.own, _ = os.ReadFile(ownScore)
	}
	if e.own != nil {
		_ = os.WriteFile(ownScore, []byte("0"), 0)
	}
}

func (e *exposure) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.starting--; e.starting == 0 && e.own != nil {
		_ = os.WriteFile(ownScore, e.own, 0) // It could be written a moment ago.
	}
}
