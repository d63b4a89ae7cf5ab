package firecracker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConsole is how large a console's file becomes, in bytes; what a guest prints after that is lost.
const maxConsole = 16 << 20

// openPipe opens a FIFO in a directory that the VMM can write to, for both reading and writing: so the VMM's end is never the last.
func openPipe(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is no FIFO", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// pump reads a FIFO until it is closed, in a goroutine that the group owns.
type pump struct {
	f    *os.File
	take func([]byte)
}

func (p *pump) run() {
	buf := make([]byte, 16<<10)
	for {
		n, err := p.f.Read(buf)
		if n > 0 {
			p.take(buf[:n])
		}
		if err != nil {
			break
		}
	}
	p.drain(buf)
}

// drain takes what is left once the VMM has ended: the FIFO has no end of file, because the agent can write to it too.
func (p *pump) drain(buf []byte) {
	conn, err := p.f.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		// A VMM that goes on writing cannot hold this up: a FIFO has 64 KiB.
		for range 8 {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			p.take(buf[:n])
		}
	})
}

// lines cuts a stream into lines, of which each is at most so long.
type lines struct {
	most int
	rest []byte
	each func(string)
}

func (l *lines) write(p []byte) {
	for len(p) > 0 {
		line, after, whole := bytes.Cut(p, []byte("\n"))
		p = after
		l.rest = append(l.rest, line[:min(len(line), l.most-len(l.rest))]...)
		if whole {
			l.each(strings.ToValidUTF8(strings.TrimRight(string(l.rest), "\r"), "?"))
			l.rest = l.rest[:0]
		}
	}
}

// console takes what the guest prints.
type console struct {
	f     *os.File
	lines lines

	mu     sync.Mutex // guards what follows
	panic  string     // why the guest's kernel panicked, as it said
	halted bool       // the guest's kernel has halted for good
	// onHalt is called once, when it has.
	onHalt func()
}

func openConsole(path string, onHalt func()) (*console, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	c := &console{f: f, onHalt: onHalt}
	c.lines = lines{most: 1 << 10, each: c.line}
	return c, nil
}

// take appends to the file, as far as it may grow. Whoever empties the file lets the guest go on.
func (c *console) take(p []byte) {
	if st, err := c.f.Stat(); err == nil && st.Size() < maxConsole {
		c.f.Write(p[:min(int64(len(p)), maxConsole-st.Size())])
	}
	c.lines.write(p)
}

// What Linux says last (kernel/reboot.c, kernel/panic.c). It halts where it was to power off, since there is nothing to do that with.
var (
	haltLine  = regexp.MustCompile(`^(\[ *\d+\.\d+\] )?reboot: (Power down|System halted)$`)
	panicLine = regexp.MustCompile(`^(?:\[ *\d+\.\d+\] )?Kernel panic - not syncing: (.{1,200})`)
)

func (c *console) line(s string) {
	c.mu.Lock()
	halts := !c.halted && haltLine.MatchString(s)
	c.halted = c.halted || halts
	if m := panicLine.FindStringSubmatch(s); m != nil {
		c.panic = m[1]
	}
	c.mu.Unlock()
	if halts {
		c.onHalt()
	}
}

func (c *console) end() (panic string, halted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panic, c.halted
}

// words are the last lines of Firecracker's log.
type words struct {
	mu   sync.Mutex // guards last
	last []string
}

const lastWords = 5

func (w *words) add(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.last) == lastWords {
		w.last = w.last[1:]
	}
	w.last = append(w.last, s)
}

func (w *words) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.last, "\n")
}

// openPipes opens the three FIFOs and begins to read them.
func (v *VM) openPipes() (err error) {
	if v.console, err = openConsole(v.cfg.ConsolePath, v.halt); err != nil {
		return err
	}
	logged := lines{most: 2 << 10, each: v.logged}
	measured := lines{most: 256 << 10, each: v.metrics.add}
	for name, take := range map[string]func([]byte){consoleName: v.console.take, logName: logged.write, metricsName: measured.write} {
		f, err := openPipe(ownDir(&v.cfg) + "/" + name)
		if err != nil {
			return err
		}
		p := &pump{f, take}
		v.pipes = append(v.pipes, f)
		v.pumps.Go(p.run)
	}
	return nil
}

// closePipes ends the reading, after what there is has been read.
func (v *VM) closePipes() error {
	var errs []error
	for _, f := range v.pipes {
		errs = append(errs, f.SetReadDeadline(past))
	}
	v.pumps.Wait()
	for _, f := range v.pipes {
		errs = append(errs, f.Close())
	}
	v.pipes = nil
	if v.console != nil {
		errs = append(errs, v.console.f.Close())
		v.console.f = nil
	}
	return errors.Join(errs...)
}

// logged takes a line of Firecracker's log.
func (v *VM) logged(s string) {
	v.words.add(s)
	v.driver.conf.Log.Debug("Firecracker says", "sandbox", v.cfg.ID, "line", s)
}
