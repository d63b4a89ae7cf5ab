package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentEnv); dir != "" {
		beAgent(dir)
	}
	goleak.VerifyTestMain(m)
}

// memory is a base in memory; reads fail while broken is set.
type memory struct {
	data   []byte
	mu     sync.Mutex
	broken error
	reads  int
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if off%BlockSize != 0 || len(p)%BlockSize != 0 || off+int64(len(p)) > m.Size() {
		return "", fmt.Errorf("illegal read of %d bytes at %d", len(p), off)
	}
	copy(p, m.data[off:])
	return "local", m.broken
}

func (m *memory) Run(off int64) (int64, bool) { return m.Size() - off, false }

func randomBase(blocks int) *memory {
	m := &memory{data: make([]byte, blocks*BlockSize)}
	for i := range m.data {
		m.data[i] = byte(rand.Uint32())
	}
	return m
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := NewStore(filepath.Join(t.TempDir(), "overlay"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func socketOf(t *testing.T) string { return filepath.Join(t.TempDir(), "disk.sock") }

func create(t *testing.T, s *Store, id string, base Base, blocks int64, socket string) *Disk {
	t.Helper()
	d, err := s.Create(t.Context(), id, base, blocks*BlockSize, socket, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Discard(context.Background()); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
			t.Errorf("left in the store: %v, %v", left, err)
		}
	})
	return d
}

func reopen(t *testing.T, s *Store, d *Disk, socket string) *Disk {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := s.Reopen(t.Context(), d.id, d.base, d.size, socket, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

func contents(t *testing.T, r io.ReaderAt, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	if n, err := r.ReadAt(p, 0); n != len(p) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	return p
}

func diskContents(t *testing.T, d *Disk) []byte {
	t.Helper()
	p := make([]byte, d.size)
	if err := d.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// model is what a disk should hold, naively.
type model struct {
	data    []byte
	changed []byte // by block, as in a layer's map
}

func newModel(base []byte, size int64) *model {
	m := &model{data: make([]byte, size), changed: make([]byte, size/BlockSize)}
	copy(m.data, base)
	return m
}

func (m *model) clone() *model { return &model{slices.Clone(m.data), slices.Clone(m.changed)} }

func (m *model) write(p []byte, off int64) {
	copy(m.data[off:], p)
	for b := off / BlockSize; b*BlockSize < off+int64(len(p)); b++ {
		m.changed[b] = inData
	}
}

func (m *model) zero(off, n int64, trim bool) {
	for b := off / BlockSize; b*BlockSize < off+n; b++ {
		from, to := max(off, b*BlockSize), min(off+n, (b+1)*BlockSize)
		switch {
		case to-from == BlockSize:
			m.changed[b] = zeros
		case trim:
			continue
		default:
			m.changed[b] = inData
		}
		clear(m.data[from:to])
	}
}

func (m *model) ranges() (list []Range) {
	for b, v := range m.changed {
		if v != below {
			list = appendRange(list, Range{Off: int64(b) * BlockSize, Len: BlockSize, Zero: v == zeros})
		}
	}
	return list
}

func (m *model) check(t *testing.T, what string, f *Frozen) {
	t.Helper()
	if got, want := f.Ranges(), m.ranges(); !slices.Equal(got, want) {
		t.Fatalf("%s: ranges\n%v, want\n%v", what, got, want)
	}
	if !bytes.Equal(contents(t, f, int64(len(m.data))), m.data) {
		t.Fatalf("%s: content differs", what)
	}
}

func TestADiskIsWhatANaiveModelIs(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { compareWithModel(t, rand.New(rand.NewPCG(seed, 1)), 400) })
	}
}

// compareWithModel does random operations on a disk and on a model, with snapshots taken, released, and agents restarted between.
func compareWithModel(t *testing.T, rnd *rand.Rand, operations int) {
	const blocks = 96
	base, socket := randomBase(64), socketOf(t)
	s := newStore(t)
	d := create(t, s, "sb_1", base, blocks, socket)
	m := newModel(base.data, d.size)
	type taken struct {
		frozen *Frozen
		model  *model
	}
	var held []taken
	letGo := func(i int) {
		held[i].model.check(t, "frozen, as it is released", held[i].frozen)
		if err := held[i].frozen.Release(); err != nil {
			t.Fatal(err)
		}
		held = slices.Delete(held, i, i+1)
	}
	for range operations {
		off := rnd.Int64N(d.size)
		n := min(1+rnd.Int64N(5*BlockSize), d.size-off)
		if rnd.IntN(2) == 0 {
			off, n = off&^(BlockSize-1), max(BlockSize, n&^(BlockSize-1))
		}
		var err error
		switch op := rnd.IntN(20); {
		case op < 8:
			p := bytes.Repeat([]byte{byte(rnd.Uint32())}, int(n))
			err = d.WriteAt(t.Context(), p, off)
			m.write(p, off)
		case op < 11:
			err = d.Trim(t.Context(), off, n)
			m.zero(off, n, true)
		case op < 13:
			err = d.Zero(t.Context(), off, n)
			m.zero(off, n, false)
		case op < 17:
			p := make([]byte, n)
			if err = d.ReadAt(t.Context(), p, off); !bytes.Equal(p, m.data[off:off+n]) {
				t.Fatalf("read of %d bytes at %d differs", n, off)
			}
		case op < 18 && len(held) < 4:
			var f *Frozen
			f, err = d.Freeze(t.Context())
			held = append(held, taken{f, m.clone()})
		case op < 19 && len(held) > 0:
			letGo(rnd.IntN(len(held)))
		case rnd.IntN(4) == 0:
			for len(held) > 0 {
				letGo(0)
			}
			d = reopen(t, s, d, socket)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for len(held) > 0 {
		letGo(0)
	}
	f, err := d.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.check(t, "at the end", f)
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	d.Close()
}
