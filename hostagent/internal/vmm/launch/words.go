package launch

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	wordsName = "covey-vmm-words"
	wordsSize = 64 << 10
	// lastWords is how much of them Words returns, in bytes.
	lastWords = 1 << 10
)

// newWords makes the file for what a process writes to standard output and error.
func newWords() (*os.File, error) {
	fd, err := unix.MemfdCreate(wordsName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), wordsName)
	if err := f.Truncate(wordsSize); err != nil {
		f.Close()
		return nil, err
	}
	// From now on a write past the end fails.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal a memfd: %w", err)
	}
	return f, nil
}

// findWords opens the file that a running process writes to; nil where it writes elsewhere.
func findWords(pid int) *os.File {
	path := fmt.Sprintf("/proc/%d/fd/2", pid)
	if link, err := os.Readlink(path); err != nil || !strings.HasPrefix(link, "/memfd:"+wordsName) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	return f
}

// Words are the last words: the end of what the process wrote to standard output and error, of the first 64 KiB.
func (p *Process) Words() string {
	if p.words == nil {
		return ""
	}
	buf := make([]byte, wordsSize)
	n, _ := p.words.ReadAt(buf, 0)
	if end := bytes.IndexByte(buf[:n], 0); end >= 0 {
		n = end
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(buf[max(0, n-lastWords):n]), "?"))
}
