package buildfmt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coveyhq/covey/services/chassis/leaktest"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }

// write makes a build of data, in pieces of changing length.
func write(t testing.TB, data []byte, o Options) ([]byte, Info) {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	for n, rest := 1, data; len(rest) > 0; n = n*7%100_003 + 1 {
		n := min(n, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	info, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), info
}

func open(b []byte, id snapfmt.ID) (*Reader, error) {
	return Open(context.Background(), File(bytes.NewReader(b)), int64(len(b)), id)
}

func mustOpen(t testing.TB, b []byte, id snapfmt.ID) *Reader {
	t.Helper()
	r, err := open(b, id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func readAll(r *Reader) ([]byte, error) {
	p := make([]byte, r.Size())
	_, err := r.ReadAt(context.Background(), p, 0)
	return p, err
}

// mixed has frames of every encoding, when frames have 4096 bytes.
func mixed(blocks int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, 0, blocks*BlockSize)
	for i := range blocks {
		switch i % 3 {
		case 0:
			for n := range BlockSize / 16 {
				b = fmt.Appendf(b, "%08x%08x", seed, n/8)
			}
		case 1:
			b = append(b, make([]byte, BlockSize)...)
		case 2:
			for range BlockSize / 8 {
				b = binary.LittleEndian.AppendUint64(b, r.Uint64())
			}
		}
	}
	return b
}

func TestABuildIsReadAsItWasWritten(t *testing.T) {
	for _, o := range []Options{{Kind: Memory}, {Kind: Disk, FrameSize: 4096, Workers: 3}, {Kind: Disk, FrameSize: 1 << 20, Workers: 2}} {
		for _, blocks := range []int{1, 3, 16, 17, 1000} {
			data := mixed(blocks, uint64(blocks))
			b, info := write(t, data, o)
			if info.SHA256 != sha256.Sum256(b) || info.Stored != int64(len(b)) || info.Size != int64(len(data)) || info.Kind != o.Kind {
				t.Fatalf("info %+v is not that of %d bytes in %d", info, len(data), len(b))
			}
			r := mustOpen(t, b, info.ID)
			if got, err := readAll(r); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d blocks, %+v: read back with error %v", blocks, o, err)
			}
			random := rand.New(rand.NewPCG(1, 1))
			for range 50 {
				off := random.Int64N(r.Size())
				p := make([]byte, random.Int64N(r.Size()-off)+1)
				if from, err := r.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, data[off:][:len(p)]) {
					t.Fatalf("%d bytes at %d: from %q, error %v", len(p), off, from, err)
				}
			}
		}
	}
}

func TestTheSameContentIsTheSameBuild(t *testing.T) {
	data := mixed(500, 1)
	a, first := write(t, data, Options{Kind: Memory, Workers: 1})
	for range 5 {
		if b, info := write(t, data, Options{Kind: Memory, Workers: 4}); info != first || !bytes.Equal(a, b) {
			t.Fatalf("info %+v, was %+v", info, first)
		}
	}
	if _, info := write(t, data, Options{Kind: Disk}); info.ID == first.ID {
		t.Error("a build of memory and one of disk have the same id")
	}
	data[len(data)-1] ^= 1
	if _, info := write(t, data, Options{Kind: Memory}); info.ID == first.ID {
		t.Error("builds of different content have the same id")
	}
}

func TestAFrameIsStoredInTheCheapestWay(t *testing.T) {
	b, info := write(t, mixed(3, 1), Options{Kind: Memory, FrameSize: 4096})
	r := mustOpen(t, b, info.ID)
	for i, want := range []Encoding{Zstd, Zeros, Raw} {
		if f := r.Frame(i); f.Encoding != want || f.Len != 4096 || want == Zeros && f.Stored != 0 || want == Raw && f.Stored != 4096 {
			t.Errorf("frame %d: %+v, want %s", i, f, want)
		}
	}
}

// TestGoldenFilesAreReadAndWritten reads files of every encoding, and writes those again that no compressor has a say in.
func TestGoldenFilesAreReadAndWritten(t *testing.T) {
	for name, data := range map[string][]byte{"raw": mixed(3, 1)[4096:], "zstd": mixed(7, 2)} {
		path := filepath.Join("testdata", name+".build")
		b, _ := write(t, data, Options{Kind: Memory, FrameSize: 4096})
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if name == "raw" && !bytes.Equal(b, golden) {
			t.Errorf("%s: written %d bytes that are not the %d of %s", name, len(b), len(golden), path)
		}
		if got, err := readAll(mustOpen(t, golden, snapfmt.ID{})); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: read back with error %v", name, err)
		}
	}
}

func TestNoFlippedBitAndNoLengthYieldsWrongData(t *testing.T) {
	data := mixed(4, 3)
	b, info := write(t, data, Options{Kind: Memory, FrameSize: 4096})
	refused := func(what string, bad []byte) {
		t.Helper()
		r, err := open(bad, info.ID)
		if err == nil {
			_, err = readAll(r)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		refused(fmt.Sprintf("bit %d flipped", i), bad)
	}
	for n := range len(b) {
		refused(fmt.Sprintf("%d bytes of %d", n, len(b)), b[:n])
	}
	refused("a byte more", append(bytes.Clone(b), 0))
	refused("another build", func() []byte { b, _ := write(t, mixed(4, 4), Options{Kind: Memory, FrameSize: 4096}); return b }())
}

func TestErrorsNameBuildAndFrame(t *testing.T) {
	b, info := write(t, mixed(9, 5), Options{Kind: Memory, FrameSize: 4096})
	r := mustOpen(t, b, info.ID)
	b[r.Frame(5).Offset] ^= 1
	p := make([]byte, 4096)
	for i := range 9 {
		_, err := r.ReadAt(context.Background(), p, int64(i)*4096)
		corrupt := (*CorruptError)(nil)
		if (i == 5) != errors.As(err, &corrupt) || i == 5 && (corrupt.Build != info.ID || corrupt.Frame != 5 || !strings.Contains(err.Error(), info.ID.String()+" is damaged in frame 5")) {
			t.Errorf("frame %d: %v", i, err)
		}
	}
	b[8] = 9
	if _, err := open(b, info.ID); err == nil || !strings.Contains(err.Error(), "format version 9; this release reads version 1") {
		t.Errorf("wrong version: %v", err)
	}
}

// resealed makes the id in the footer right for what precedes it.
func resealed(b []byte) []byte {
	l := layout{}
	if len(b) < prefixSize+footerSize || l.parsePrefix(b[:prefixSize]) != nil || l.parseFooter(b[len(b)-footerSize:], int64(len(b))) != nil {
		return b
	}
	footer, _ := l.footer(b[l.indexOffset : len(b)-footerSize])
	return append(b[:len(b)-footerSize:len(b)-footerSize], footer...)
}

func TestAnIndexThatLiesIsRefused(t *testing.T) {
	le := binary.LittleEndian
	b, _ := write(t, mixed(6, 6), Options{Kind: Memory, FrameSize: 4096})
	at := int(mustOpen(t, b, snapfmt.ID{}).IndexOffset())
	footer := len(b) - footerSize
	for want, change := range map[string]func(b []byte){
		"the index says 5000 bytes":     func(b []byte) { le.PutUint32(b[at:], 5000) },
		"encoding 7":                    func(b []byte) { le.PutUint32(b[at+4:], 7) },
		"its frames end at":             func(b []byte) { le.PutUint32(b[at:], le.Uint32(b[at:])-1) },
		"which cannot be in a file":     func(b []byte) { le.PutUint64(b[footer+8:], 1<<60) },
		"positive multiple of 4096":     func(b []byte) { le.PutUint64(b[footer:], 4095) },
		"the footer says 7 frames":      func(b []byte) { le.PutUint32(b[footer+16:], 7) },
		"it must have":                  func(b []byte) { le.PutUint64(b[footer+8:], uint64(at-24)) },
		"kind must be 1 or 2":           func(b []byte) { b[16] = 3 },
		"reserved part":                 func(b []byte) { b[20] = 3 },
		"frame size must be":            func(b []byte) { le.PutUint32(b[12:], 5000) },
		"does not fit the index":        func(b []byte) { b[footer+20] = 1 },
		"does not end with the magic":   func(b []byte) { b[len(b)-1] = 1 },
		"does not begin with the magic": func(b []byte) { b[0] = 1 },
	} {
		bad := bytes.Clone(b)
		change(bad)
		if want != "does not fit the index" {
			bad = resealed(bad)
		}
		if _, err := open(bad, snapfmt.ID{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}

// TestAFrameUnpacksToNoMoreThanItsLength has a frame that is right by its checksum and unpacks to a thousand times its length.
func TestAFrameUnpacksToNoMoreThanItsLength(t *testing.T) {
	bomb := encoder().EncodeAll(make([]byte, 1<<20), nil)
	l := layout{frameSize: 4096, kind: Memory, size: 4096, frames: 1}
	s := sum(bomb)
	index := binary.LittleEndian.AppendUint32(nil, uint32(len(bomb)))
	index = append(binary.LittleEndian.AppendUint32(index, uint32(Zstd)), s[:]...)
	l.indexOffset = prefixSize + int64(len(bomb))
	footer, id := l.footer(index)
	r := mustOpen(t, bytes.Join([][]byte{l.prefix(), bomb, index, footer}, nil), id)
	if _, err := readAll(r); !errors.Is(err, ErrCorrupt) {
		t.Errorf("it was unpacked: %v", err)
	}
}

type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestAWriterThatFailsSaysSoAndEnds(t *testing.T) {
	full := errors.New("no space")
	for _, after := range []int{0, 100, 100_000, 1 << 20} {
		w, err := NewWriter(&failing{after, full}, Options{Kind: Memory, Workers: 2})
		if err == nil {
			for range 100 {
				if _, err = w.Write(mixed(100, 1)); err != nil {
					break
				}
			}
			if _, e := w.Close(); err == nil {
				err = e
			}
		}
		if !errors.Is(err, full) {
			t.Errorf("after %d bytes: %v", after, err)
		}
	}
	w, err := NewWriter(io.Discard, Options{Kind: Memory})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("a build of nothing was written")
	}
	if _, err := w.Write(make([]byte, 1)); err == nil {
		t.Error("a closed build was written to")
	}
	for _, o := range []Options{{}, {Kind: Memory, FrameSize: 5000}, {Kind: Memory, FrameSize: 2 << 20}} {
		if _, err := NewWriter(io.Discard, o); err == nil {
			t.Errorf("options %+v were taken", o)
		}
	}
}

// remote is a Source that counts, and fails as told.
type remote struct {
	b     []byte
	mu    sync.Mutex
	calls int
	bytes int
	err   error
}

func (s *remote) ReadAt(_ context.Context, p []byte, off int64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.bytes += len(p)
	if s.err != nil {
		return "", s.err
	}
	if copy(p, s.b[off:]) < len(p) {
		return "", io.ErrUnexpectedEOF
	}
	return "far", nil
}

func TestARemoteReaderFetchesOnlyWhatItNeeds(t *testing.T) {
	data := likeMemory(16<<20, 1)
	b, info := write(t, data, Options{Kind: Memory, Workers: 2})
	src := &remote{b: b}
	ctx := context.Background()
	r, err := Open(ctx, src, int64(len(b)), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	if src.calls > 3 || src.bytes > 32<<10 {
		t.Errorf("opening took %d calls and %d bytes", src.calls, src.bytes)
	}
	before := src.bytes
	p := make([]byte, 4096)
	from, err := r.ReadAt(ctx, p, 5<<20)
	if err != nil || from != "far" || !bytes.Equal(p, data[5<<20:][:4096]) {
		t.Fatalf("from %q, error %v", from, err)
	}
	if src.bytes-before > 64<<10 {
		t.Errorf("a page took %d bytes", src.bytes-before)
	}
	src.err = errors.New("the network is cut")
	if _, err := r.ReadAt(ctx, p, 5<<20); !errors.Is(err, src.err) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "frame 80") {
		t.Errorf("a source that fails: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, blocks := range []int{1, 3, 7} {
		b, _ := write(f, mixed(blocks, 1), Options{Kind: Memory, FrameSize: 4096})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = resealed(bytes.Clone(b)) // else nothing gets past the id
		r, err := open(b, snapfmt.ID{})
		if err == nil && r.Size() > 1<<24 {
			return
		}
		if err == nil {
			_, err = readAll(r)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// FuzzUnpack gives the decoder stored bytes whose checksum is right.
func FuzzUnpack(f *testing.F) {
	f.Add(encoder().EncodeAll(likeMemory(4096, 1), nil))
	f.Add(encoder().EncodeAll(make([]byte, 1<<20), nil))
	f.Fuzz(func(t *testing.T, stored []byte) {
		if len(stored) == 0 || len(stored) >= 4096 {
			return
		}
		l := layout{frameSize: 4096, kind: Disk, size: 4096, frames: 1, indexOffset: prefixSize + int64(len(stored))}
		s := sum(stored)
		index := binary.LittleEndian.AppendUint32(nil, uint32(len(stored)))
		index = append(binary.LittleEndian.AppendUint32(index, uint32(Zstd)), s[:]...)
		footer, id := l.footer(index)
		r := mustOpen(t, bytes.Join([][]byte{l.prefix(), stored, index, footer}, nil), id)
		if _, err := readAll(r); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
