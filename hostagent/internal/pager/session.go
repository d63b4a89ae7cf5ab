package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Session serves the memory of one VM. It is safe for concurrent use.
type Session struct {
	cache  *Cache
	id     string
	img    *Image
	socket string
	uid    int
	log    *slog.Logger
	counts sourceCounts

	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	gate   *gate          // who uses the userfaultfd or answers a fault is inside
	wg     sync.WaitGroup // waiting for the handshake
	listen *net.UnixListener

	// What the handshake brought; written before connected is closed and the poller knows of it, not changed later.
	connected chan struct{}
	uffd      int
	number    int64 // the poller's
	pid       int
	regions   []Region
	private   bool
	removed   *bitmap // pages that an anonymous session's VMM has discarded
	// removes is held to read messages, and shared to copy pages in.
	removes sync.RWMutex

	faulted   chan struct{} // closed by the first fault
	faultOnce sync.Once

	failed   chan struct{} // closed by fail
	failOnce sync.Once
	err      error // written before failed is closed

	aheadMu              sync.Mutex
	aheadEnd, aheadUnits int64 // guarded by aheadMu; the unit after what was last brought in ahead, and how many those were

	orderMu sync.Mutex
	seen    *bitmap // blocks in order
	order   []int64 // guarded by orderMu; blocks that faults needed, as offsets
}

// Serve listens on a Unix socket for the handshake of a VMM that runs as user uid, and then serves its faults until Close. The context
// bounds nothing but this call. The socket goes once the VMM has connected.
func (c *Cache) Serve(_ context.Context, id string, img *Image, socket string, uid int) (*Session, error) {
	s, err := c.begin(id, img, socket, uid)
	if err != nil {
		return nil, err
	}
	if err := s.await(); err != nil {
		return nil, errors.Join(err, s.leave(context.Background()))
	}
	return s, nil
}

// begin makes a session and lists it.
func (c *Cache) begin(id string, img *Image, socket string, uid int) (*Session, error) {
	if err := checkKey("id", id); err != nil {
		return nil, err
	}
	s := &Session{
		cache: c, id: id, img: img, socket: socket, uid: uid, uffd: -1, log: c.log.With("sandbox", id), gate: newGate(),
		connected: make(chan struct{}), faulted: make(chan struct{}), failed: make(chan struct{}), seen: newBitmap((img.Size() + blockSize - 1) / blockSize),
	}
	s.counts.sum = &c.tally.sources
	s.ctx, s.cancel = context.WithCancel(img.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.sessions[id] != nil {
		return nil, fmt.Errorf("pager: session %s: %w", id, ErrInUse)
	}
	c.sessions[id] = s
	return s, nil
}

// await listens for the VMM.
func (s *Session) await() error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pager: socket: %w", err)
	}
	// The mode is set before there is a name, and the owner without following links: the directory may be the VMM's own.
	conf := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	made, err := conf.Listen(s.cache.ctx, "unix", s.socket)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	l := made.(*net.UnixListener)
	// Only a close that is the end removes the socket, not that of an agent which goes down and leaves its VMs.
	l.SetUnlinkOnClose(false)
	if err := os.Lchown(s.socket, s.uid, -1); err != nil {
		l.Close()
		os.Remove(s.socket)
		return fmt.Errorf("pager: socket: %w", err)
	}
	s.listen = l
	s.wg.Go(s.accept)
	return nil
}

// accept takes the first handshake that the VMM's user sends.
func (s *Session) accept() {
	for {
		conn, err := s.listen.AcceptUnix()
		if err != nil {
			return // closed
		}
		stop := context.AfterFunc(s.ctx, func() { conn.Close() }) // whoever connects and says nothing holds up no Close
		h, err := receive(conn, s.uid, s.img.Size())
		stop()
		conn.Close()
		if errors.Is(err, errStranger) {
			s.log.Warn("refused a handshake", "err", err)
			continue
		}
		if err == nil {
			err = s.connect(h)
		}
		if err != nil {
			s.fail(err)
		}
		os.Remove(s.socket)
		s.listen.Close()
		return
	}
}

// connect begins to serve faults.
func (s *Session) connect(h handshake) error {
	private, err := mapsPrivately(h, s.img.file.ro)
	if err == nil && !private {
		s.removed = newBitmap(s.img.Size() / PageSize)
		err = s.writeRecord(h.regions)
	}
	if err == nil {
		err = unix.SetNonblock(h.uffd, true)
	}
	if err == nil && !s.gate.enter() {
		err = ErrClosed
	}
	if err != nil {
		unix.Close(h.uffd)
		return err
	}
	defer s.gate.leave()
	s.uffd, s.pid, s.regions, s.private = h.uffd, h.pid, h.regions, private
	if err := s.cache.poller.add(s); err != nil {
		return err
	}
	close(s.connected)
	return nil
}

// mapsPrivately tells whether the VMM's regions are private mappings of the image's file; else they are anonymous.
func mapsPrivately(h handshake, image *os.File) (bool, error) {
	mapped, err := FindMapping(h.pid, image)
	if err != nil {
		return false, fmt.Errorf("mappings of the VMM: %w", err)
	}
	in := 0
	for _, r := range h.regions {
		for _, m := range mapped {
			if r.Base >= m.Base && r.Base+r.Size <= m.Base+m.Size && r.Offset-m.Offset == r.Base-m.Base {
				in++
			}
		}
	}
	if in != 0 && in != len(h.regions) {
		return false, errors.New("some regions of the handshake map the image, and some do not")
	}
	return in != 0, nil
}

// fail ends the VM's hope.
func (s *Session) fail(err error) {
	if s.ctx.Err() != nil {
		return // closing: what was under way was cut off
	}
	s.failOnce.Do(func() {
		s.err = err
		s.cache.tally.failures.Add(1)
		s.log.Error("a VM's memory cannot be served", "err", err)
		close(s.failed)
	})
}

// Failed is closed when a page cannot be served. The thread that needs it waits for ever: the VM has to be killed.
func (s *Session) Failed() <-chan struct{} { return s.failed }

// Faulted is closed when the VM has asked for its first page.
func (s *Session) Faulted() <-chan struct{} { return s.faulted }

// Connected is closed when the VMM has handed over its userfaultfd.
func (s *Session) Connected() <-chan struct{} { return s.connected }

// Err says what failed, naming the image and the offset; nil while nothing has.
func (s *Session) Err() error {
	select {
	case <-s.failed:
		return s.err
	default:
		return nil
	}
}

// Socket is where the VMM connects.
func (s *Session) Socket() string { return s.socket }

// Sources counts the pages brought in for this session until now, prefetched ones included. Pages that the kernel mapped from the image's
// file without asking are not among them.
func (s *Session) Sources() []SourceCount { return list(&s.counts, &s.img.counts) }

// Close ends the session and takes away what it left in the file system. The VM has ended.
func (s *Session) Close(ctx context.Context) error {
	if err := s.leave(ctx); err != nil {
		return err
	}
	return errors.Join(removeIfThere(s.socket), removeIfThere(s.recordPath()))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leave ends the session on the pager's side alone. It may be called again.
func (s *Session) leave(ctx context.Context) error {
	s.cancel()
	if s.listen != nil {
		s.listen.Close()
	}
	s.gate.close()
	select {
	case <-s.gate.empty:
	case <-ctx.Done():
		return fmt.Errorf("pager: session %s: a source goes on reading: %w", s.id, context.Cause(ctx))
	}
	s.wg.Wait()
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	if s.cache.sessions[s.id] != s {
		return nil
	}
	delete(s.cache.sessions, s.id)
	if s.uffd >= 0 {
		s.cache.poller.remove(s)
		unix.Close(s.uffd)
	}
	return nil
}

// isRemoved tells whether the VMM has discarded the page; then it is zeros.
func (s *Session) isRemoved(off int64) bool { return s.removed != nil && s.removed.has(off/PageSize) }

// recordPath is where the next process finds an anonymous session's regions: unlike a private one's, they cannot be told from
// the VMM's other mappings.
func (s *Session) recordPath() string { return filepath.Join(s.cache.conf.Dir, s.id+recordSuffix) }

func (s *Session) writeRecord(regions []Region) error {
	text, err := json.Marshal(regions)
	if err != nil {
		return err
	}
	tmp := s.recordPath() + ".tmp"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.recordPath())
}
