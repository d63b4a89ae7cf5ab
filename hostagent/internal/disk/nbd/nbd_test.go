package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// flat is an export in memory that fails the test when it is asked for what lies outside.
type flat struct {
	t    testing.TB
	mu   sync.Mutex
	data []byte
	err  error
	// gate, if set, holds every read up.
	gate chan struct{}
	// reading counts reads under way; most is the most there were.
	reading, most int
}

func (f *flat) Size() int64 { return int64(len(f.data)) }

func (f *flat) part(off, n int64) []byte {
	if off < 0 || n < 0 || off > f.Size() || n > f.Size()-off {
		f.t.Errorf("the export was asked for %d bytes at %d", n, off)
		return nil
	}
	return f.data[off : off+n]
}

func (f *flat) ReadAt(ctx context.Context, p []byte, off int64) error {
	f.mu.Lock()
	f.reading++
	f.most = max(f.most, f.reading)
	f.mu.Unlock()
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading--
	copy(p, f.part(off, int64(len(p))))
	return f.err
}

func (f *flat) WriteAt(_ context.Context, p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(f.part(off, int64(len(p))), p)
	return f.err
}

func (f *flat) Zero(_ context.Context, off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.part(off, n))
	return f.err
}

func (f *flat) Trim(ctx context.Context, off, n int64) error { return f.Zero(ctx, off, n) }

func serve(t *testing.T, f *flat) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "nbd.sock")
	s, err := Listen(socket, os.Getuid(), f, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// client is a client that may do what real ones do not.
type client struct {
	net.Conn
	t *testing.T
}

func dial(t *testing.T, socket string) client {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return client{c, t}
}

func (c client) send(parts ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		if s, ok := p.(string); ok {
			b.WriteString(s)
		} else if err := binary.Write(&b, binary.BigEndian, p); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) receive(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// ends checks that the server closes the connection without another word.
func (c client) ends(what string) {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c); n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		c.t.Errorf("after %s: %d more bytes, %v", what, n, err)
	}
}

func (c client) option(opt uint32, data string) {
	c.t.Helper()
	c.send(uint64(magicOption), opt, uint32(len(data)), data)
}

// optionReply reads one reply to an option.
func (c client) optionReply(opt uint32) (kind uint32, data []byte) {
	c.t.Helper()
	h := c.receive(20)
	if binary.BigEndian.Uint64(h) != magicOptionReply || binary.BigEndian.Uint32(h[8:]) != opt {
		c.t.Fatalf("reply to option %d begins %x", opt, h)
	}
	return binary.BigEndian.Uint32(h[12:]), c.receive(int(binary.BigEndian.Uint32(h[16:])))
}

// open dials and chooses the export.
func open(t *testing.T, socket string) client {
	t.Helper()
	c := dial(t, socket)
	c.receive(18)
	c.send(uint32(flagFixedNewstyle | flagNoZeroes))
	c.option(optExportName, "")
	c.receive(10)
	return c
}

func (c client) request(flags, kind uint16, cookie, off uint64, length uint32, data string) {
	c.t.Helper()
	c.send(uint32(magicRequest), flags, kind, cookie, off, length, data)
}

func (c client) reply() (e errno, cookie uint64) {
	c.t.Helper()
	b := c.receive(replySize)
	if binary.BigEndian.Uint32(b) != magicReply {
		c.t.Fatalf("a reply begins %x", b)
	}
	return errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:])
}

func TestTheHandshakeAnswersEveryOption(t *testing.T) {
	socket := serve(t, &flat{t: t, data: make([]byte, 1<<20)})
	c := dial(t, socket)
	if got := string(c.receive(18)); got != "NBDMAGICIHAVEOPT\x00\x03" {
		t.Fatalf("greeting %q", got)
	}
	c.send(uint32(flagFixedNewstyle))
	for _, o := range []struct {
		opt  uint32
		data string
		want uint32
	}{
		{8, "", repErrUnsup}, {5, "", repErrUnsup}, {10, "abc", repErrUnsup}, {optList, "x", repErrInvalid}, {optGo, "", repErrInvalid},
		{optGo, "\x00\x00\x00\x09ab\x00\x00", repErrInvalid}, {optGo, "\x00\x00\x00\x00\x00\x09", repErrInvalid},
		{optInfo, "\xff\xff\xff\xff\x00\x00", repErrInvalid}, {optInfo, "\x00\x00\x00\x01x\x00\x00", repErrUnknown},
	} {
		c.option(o.opt, o.data)
		if kind, _ := c.optionReply(o.opt); kind != o.want {
			t.Errorf("option %d with %q is answered %#x and not %#x", o.opt, o.data, kind, o.want)
		}
	}
	c.option(optExportName, "")
	if b := c.receive(8 + 2 + 124); binary.BigEndian.Uint64(b) != 1<<20 || binary.BigEndian.Uint16(b[8:]) != transmissionFlags {
		t.Errorf("the export is %x", b)
	}
	c.request(0, cmdDisc, 0, 0, 0, "")
	c.ends("DISC")
}

func TestWhatIsNotTheProtocolEndsTheConnection(t *testing.T) {
	socket := serve(t, &flat{t: t, data: make([]byte, 1<<20)})
	for name, do := range map[string]func(c client){
		"unknown handshake flags": func(c client) { c.send(uint32(0xff)) },
		"an old client":           func(c client) { c.send(uint32(0)) },
		"a garbled option":        func(c client) { c.send(uint32(3), uint64(1), uint32(1), uint32(0)) },
		"an endless option":       func(c client) { c.send(uint32(3), uint64(magicOption), uint32(optGo), uint32(1<<31)) },
		"an unknown name":         func(c client) { c.send(uint32(3)); c.option(optExportName, "other") },
	} {
		c := dial(t, socket)
		c.receive(18)
		do(c)
		c.ends(name)
	}
	for name, do := range map[string]func(c client){
		"a garbled request": func(c client) { c.send(make([]byte, requestSize)) },
		"an endless write":  func(c client) { c.request(0, cmdWrite, 1, 0, MaxRequest+1, "") },
	} {
		c := open(t, socket)
		do(c)
		c.ends(name)
	}
}

func TestIllegalRequestsAreAnsweredAndTheConnectionGoesOn(t *testing.T) {
	f := &flat{t: t, data: make([]byte, 1<<20)}
	c := open(t, serve(t, f))
	for i, r := range []struct {
		flags, kind uint16
		off         uint64
		length      uint32
		data        string
		want        errno
	}{
		{0, cmdRead, 0, MaxRequest + 1, "", eINVAL},
		{0, cmdRead, 1<<20 - 1, 2, "", eINVAL},
		{0, cmdRead, 1<<64 - 1, 2, "", eINVAL},
		{0, cmdWrite, 1<<20 - 1, 2, "xy", eNOSPC},
		{0, cmdWrite, 1 << 63, 2, "xy", eNOSPC},
		{0, cmdWriteZeroes, 1, 1 << 20, "", eNOSPC},
		{0, cmdTrim, 1, 1 << 20, "", eINVAL},
		{0, cmdTrim, 1<<64 - 1, 1<<32 - 1, "", eINVAL},
		{0, 5, 0, 0, "", eINVAL},
		{0, 77, 0, 8, "", eINVAL},
		{4, cmdRead, 0, 8, "", eINVAL},
		{flagNoHole, cmdWrite, 0, 2, "xy", eINVAL},
		{1 << 8, cmdFlush, 0, 0, "", eINVAL},
		{0, cmdRead, 1 << 20, 0, "", ok},
		{flagFUA, cmdFlush, 9, 9, "", ok},
		{flagFUA, cmdWrite, 1<<20 - 2, 2, "xy", ok},
		{flagFUA | flagNoHole, cmdWriteZeroes, 0, 1 << 19, "", ok},
		{flagFUA, cmdTrim, 0, 1 << 19, "", ok},
	} {
		c.request(r.flags, r.kind, uint64(i), r.off, r.length, r.data)
		if e, cookie := c.reply(); e != r.want || cookie != uint64(i) {
			t.Errorf("request %d is answered %d for %d and not %d", i, e, cookie, r.want)
		}
	}
	if string(f.data[1<<20-2:]) != "xy" {
		t.Error("the write was lost")
	}
}

func TestErrorsOfTheExportReachTheClient(t *testing.T) {
	f := &flat{t: t, data: make([]byte, 4096), err: errors.New("a build is missing")}
	c := open(t, serve(t, f))
	for err, want := range map[error]errno{errors.New("a build is missing"): eIO, unix.ENOSPC: eNOSPC, nil: ok} {
		f.mu.Lock()
		f.err = err
		f.mu.Unlock()
		c.request(0, cmdWrite, 1, 0, 1, "x")
		if e, _ := c.reply(); e != want {
			t.Errorf("%v is answered %d and not %d", err, e, want)
		}
	}
}

func TestARequestThatWaitsHoldsUpNoOther(t *testing.T) {
	f := &flat{t: t, data: make([]byte, 4096), gate: make(chan struct{})}
	c := open(t, serve(t, f))
	c.request(0, cmdRead, 1, 0, 4096, "")
	c.request(0, cmdWrite, 2, 0, 3, "abc")
	if e, cookie := c.reply(); e != ok || cookie != 2 {
		t.Fatalf("answered %d for %d", e, cookie)
	}
	close(f.gate)
	if e, cookie := c.reply(); e != ok || cookie != 1 || string(c.receive(4096)[:3]) != "abc" {
		t.Fatalf("answered %d for %d", e, cookie)
	}
}

func TestAGreedyClientIsHeldToItsBudget(t *testing.T) {
	f := &flat{t: t, data: make([]byte, MaxRequest), gate: make(chan struct{})}
	socket := serve(t, f)
	c := open(t, socket)
	const requests = 40
	for i := range uint64(requests) {
		c.request(0, cmdRead, i, 0, MaxRequest, "")
	}
	close(f.gate)
	for range requests {
		if e, _ := c.reply(); e != ok {
			t.Fatalf("answered %d", e)
		}
		c.receive(MaxRequest)
	}
	if f.mu.Lock(); f.most > budget/MaxRequest {
		t.Errorf("%d requests were under way", f.most)
	}
	f.mu.Unlock()
	for range maxConns - 1 {
		open(t, socket)
	}
	dial(t, socket).ends("too many connections")
}

func TestClosingEndsWhatIsUnderWay(t *testing.T) {
	f := &flat{t: t, data: make([]byte, 4096), gate: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	s, err := Listen(socket, os.Getuid(), f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, socket)
	c.request(0, cmdRead, 1, 0, 4096, "")
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if f.reading != 0 {
		t.Error("a read is still under way")
	}
	if st, err := os.Stat(socket); err == nil {
		t.Errorf("%s is still there", st.Name())
	}
}

func TestTheSocketIsTheVMMsAlone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	const uid = 234567
	s, err := Listen(socket, uid, &flat{t: t}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var st unix.Stat_t
	if err := unix.Stat(socket, &st); err != nil || st.Uid != uid || st.Mode&0o777 != 0o600 {
		t.Errorf("the socket is of %d, mode %o, %v", st.Uid, st.Mode, err)
	}
}
