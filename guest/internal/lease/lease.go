// Package lease lets programs in the guest hold the sandbox's inactivity timer.
//
// A lease is an open connection to a Unix socket: it ends with whoever holds it, however that ends. Anything may connect by
// itself; covey-lease is a command that does it for another one.
package lease

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is where leases are taken; Command the name of the program that takes them.
const (
	Socket  = "/run/covey/lease.sock"
	Command = "covey-lease"
)

const (
	// maxHeld bounds leases: one holds the timer as well as a thousand, and each takes a descriptor of guestd.
	maxHeld = 256
	// acceptAgain is how long to wait for descriptors.
	acceptAgain = 100 * time.Millisecond
)

// Keeper counts leases.
type Keeper struct {
	listener net.Listener
	serving  sync.WaitGroup
	closed   chan struct{} // closed by the first Close
	once     sync.Once

	mu   sync.Mutex
	held map[net.Conn]bool // guarded by mu
}

// Listen begins to give leases out.
func Listen(socket string) (*Keeper, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	k := &Keeper{listener: l, closed: make(chan struct{}), held: map[net.Conn]bool{}}
	k.serving.Go(k.serve)
	return k, nil
}

func (k *Keeper) serve() {
	for {
		c, err := k.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// No descriptors for now. Who is connecting waits, and has its lease as soon as there are some again.
			select {
			case <-time.After(acceptAgain):
				continue
			case <-k.closed:
				return
			}
		}
		k.mu.Lock()
		full := len(k.held) >= maxHeld
		if !full {
			k.held[c] = true
		}
		k.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		k.serving.Go(func() {
			// The holder has nothing to say: what is read is its end.
			buf := make([]byte, 64)
			for {
				if _, err := c.Read(buf); err != nil {
					break
				}
			}
			k.mu.Lock()
			delete(k.held, c)
			k.mu.Unlock()
			c.Close()
		})
	}
}

// Held is how many leases are taken.
func (k *Keeper) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}

// Close ends all leases.
func (k *Keeper) Close() error {
	err := k.listener.Close()
	k.once.Do(func() { close(k.closed) })
	k.mu.Lock()
	for c := range k.held {
		c.Close()
	}
	k.mu.Unlock()
	k.serving.Wait()
	return err
}

// Run runs a command under a lease and returns its exit code, 128 plus the signal's number if a signal ended it.
func Run(socket string, command []string) (int, error) {
	if len(command) == 0 {
		return 2, fmt.Errorf("usage: %s -- COMMAND [ARGUMENT...]", Command)
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 1, fmt.Errorf("take a lease: %w", err)
	}
	defer c.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return 127, err
		}
		return 126, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal's keys reach the command by themselves.
			if s != unix.SIGINT && s != unix.SIGQUIT {
				_ = cmd.Process.Signal(s) // it may have ended
			}
		case <-ended:
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}
