package process

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// oomCounter reads how many processes the guest's kernel has killed for lack of memory.
type oomCounter struct{ fd int }

func newOOMCounter() *oomCounter {
	fd, err := unix.Open("/proc/vmstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd = -1 // no /proc: nothing is counted
	}
	return &oomCounter{fd: fd}
}

func (c *oomCounter) read() uint64 {
	var buf [8 << 10]byte
	n, err := unix.Pread(c.fd, buf[:], 0)
	if err != nil || n <= 0 {
		return 0
	}
	_, after, found := bytes.Cut(buf[:n], []byte("\noom_kill "))
	if !found {
		return 0
	}
	number, _, _ := bytes.Cut(after, []byte("\n"))
	kills, _ := strconv.ParseUint(string(number), 10, 64)
	return kills
}

func (c *oomCounter) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
}
