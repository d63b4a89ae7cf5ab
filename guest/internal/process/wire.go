package process

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// wiring is how a command's standard files are connected: theirs are closed once it has them, readers are our ends of its
// output (standard output or the terminal first), input is our end of its input.
type wiring struct {
	theirs   []*os.File // standard input, output and error
	readers  []*os.File
	input    *os.File // nil where the input is closed or given already
	terminal *os.File // our end of the terminal, or nil
}

// closeTheirs closes the command's ends, but not what it shares with others.
func (w *wiring) closeTheirs(shared *os.File) {
	for i, f := range w.theirs {
		if f != shared && (i == 0 || f != w.theirs[0]) {
			f.Close()
		}
	}
}

// closeOurs closes what nobody else would.
func (w *wiring) closeOurs() {
	for _, r := range w.readers {
		r.Close()
	}
	if w.input != nil {
		w.input.Close()
	}
}

// pipe makes a pipe of which our end waits in Go's poller and theirs blocks, as programs expect.
func pipe(weWrite bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	our, their := fds[0], fds[1]
	if weWrite {
		our, their = their, our
	}
	if err := unix.SetNonblock(our, true); err != nil {
		unix.Close(our)
		unix.Close(their)
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return os.NewFile(uintptr(our), "|ours"), os.NewFile(uintptr(their), "|theirs"), nil
}

// pipeBytes is what a pipe takes before a writer has to wait (F_GETPIPE_SZ's default, pipe(7)).
const pipeBytes = 64 << 10

// wirePipes connects output by pipes. Input is a pipe, or null where stdin is given and empty; what fits into the pipe is
// written at once, so that no one has to carry it.
func wirePipes(null *os.File, interactive bool, stdin []byte) (w *wiring, rest []byte, err error) {
	made := &wiring{theirs: make([]*os.File, 3)}
	w = made
	defer func() {
		if err != nil { // w is nil by then.
			made.closeOurs()
			made.closeTheirs(null)
		}
	}()
	for i := 1; i < 3; i++ {
		ours, theirs, err := pipe(false)
		if err != nil {
			return nil, nil, err
		}
		w.theirs[i], w.readers = theirs, append(w.readers, ours)
	}
	if !interactive && len(stdin) == 0 {
		w.theirs[0] = null
		return w, nil, nil
	}
	if w.input, w.theirs[0], err = pipe(true); err != nil {
		return nil, nil, err
	}
	if interactive {
		return w, nil, nil
	}
	n := min(len(stdin), pipeBytes)
	if _, err := w.input.Write(stdin[:n]); err != nil {
		return nil, nil, fmt.Errorf("write standard input: %w", err)
	}
	if n == len(stdin) {
		w.input.Close()
		w.input = nil
	}
	return w, stdin[n:], nil
}

// wireTerminal connects everything to a new terminal that belongs to uid.
func wireTerminal(size Size, uid int) (*wiring, error) {
	ours, theirs, err := openTerminal(size, uid)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	return &wiring{theirs: []*os.File{theirs, theirs, theirs}, readers: []*os.File{ours}, input: ours, terminal: ours}, nil
}

// ttyGroup is the group "tty" of every Linux system; terminals belong to it so that programs like write(1) can use them.
const ttyGroup = 5

func openTerminal(size Size, uid int) (ours, theirs *os.File, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	slave := -1
	defer func() {
		if err != nil {
			unix.Close(master)
			if slave >= 0 {
				unix.Close(slave)
			}
		}
	}()
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	// The peer is opened through the master: no path that something in the guest could replace.
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errno
	}
	slave = int(fd)
	if err := unix.Fchown(slave, uid, ttyGroup); err != nil {
		return nil, nil, err
	}
	if err := setSize(master, size); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(master), "terminal"), os.NewFile(uintptr(slave), "tty"), nil
}

func setSize(fd int, s Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
}

// control runs f with a file's descriptor and leaves the file as it is; File.Fd would make it block.
func control(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := rc.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}
