package snapfmt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

const block = 4096

func id(n byte) ID { return ID{n, 0xff} }

// cell is where a block lies, in the naive model of a header: one for each block.
type cell struct {
	build  ID
	offset int64
}

type model []cell

func (m model) apply(changes []Change) model {
	next := append(model(nil), m...)
	for _, c := range changes {
		for i := int64(0); i < c.Len; i += block {
			next[(c.Off+i)/block] = cell{c.Build, c.Offset + i}
			if c.Build == (ID{}) {
				next[(c.Off+i)/block].offset = 0
			}
		}
	}
	return next
}

// compare looks every block up, and goes through random ranges.
func (m model) compare(t *testing.T, h *Header, r *rand.Rand) {
	t.Helper()
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	if h.Size != int64(len(m))*block {
		t.Fatalf("size %d, want %d blocks", h.Size, len(m))
	}
	for i, want := range m {
		e, ok := h.Lookup(int64(i) * block)
		if got := (cell{h.BuildID(e), e.Offset}); !ok || got != want {
			t.Fatalf("block %d lies in %v, want %v", i, got, want)
		}
	}
	for range 20 {
		off := r.Int64N(h.Size)
		length := r.Int64N(h.Size-off) + 1
		at := off
		for e := range h.Extents(off, length) {
			want := m[at/block]
			if e.Off != at || e.Len <= 0 || h.BuildID(e) != want.build || e.Build != 0 && e.Offset != want.offset+at%block {
				t.Fatalf("extent %+v at %d, want %v", e, at, want)
			}
			at += e.Len
		}
		if at != off+length {
			t.Fatalf("extents of %d+%d end at %d", off, length, at)
		}
	}
}

// randomChanges makes ascending changes of a space; data is packed into the build.
func randomChanges(r *rand.Rand, blocks int64, build ID) (changes []Change) {
	offset := int64(0)
	for at := r.Int64N(8); at < blocks; at += r.Int64N(1 + blocks/8) {
		n := min(1+r.Int64N(8), blocks-at)
		c := Change{Off: at * block, Len: n * block}
		if r.IntN(4) > 0 {
			c.Build, c.Offset = build, offset
			offset += c.Len
		}
		changes = append(changes, c)
		at += n
	}
	return changes
}

func TestAHeaderIsWhatItsGenerationsChanged(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		blocks := 1 + r.Int64N(300)
		h, err := New(blocks*block, block)
		if err != nil {
			t.Fatal(err)
		}
		m := make(model, blocks)
		for generation := range 40 {
			build := id(byte(generation + 1))
			changes := randomChanges(r, blocks, build)
			next, err := h.Merge(build, changes)
			if err != nil {
				t.Fatal(err)
			}
			if next.Generation != h.Generation+1 || next.Parent != h.Build || next.Build != build {
				t.Fatalf("generation %d of build %s after %d of %s", next.Generation, next.Build, h.Generation, h.Build)
			}
			m.compare(t, h, r) // the parent stays what it was
			h, m = next, m.apply(changes)
			m.compare(t, h, r)
			roundTrip(t, h)
		}
		grown, err := h.Grow(h.Size + 10*block)
		if err != nil {
			t.Fatal(err)
		}
		append(m, make(model, 10)...).compare(t, grown, r)
	}
}

func roundTrip(t *testing.T, h *Header) []byte {
	t.Helper()
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, h) {
		t.Fatalf("decoded %+v, want %+v", again, h)
	}
	if int64(len(b)) != h.EncodedSize() {
		t.Fatalf("%d bytes, EncodedSize says %d", len(b), h.EncodedSize())
	}
	return b
}

func TestOnlyWhatIsNamedIsListed(t *testing.T) {
	h := must(New(8*block, block))
	h = must(h.Merge(id(1), []Change{{0, 4 * block, id(1), 0}}))
	h = must(h.Merge(id(2), []Change{{0, 2 * block, id(2), 0}}))
	if len(h.Builds) != 2 {
		t.Fatalf("builds: %v", h.Builds)
	}
	h = must(h.Merge(id(3), []Change{{2 * block, 2 * block, id(3), 0}}))
	if want := []ID{id(2), id(3)}; !reflect.DeepEqual(h.Builds, want) {
		t.Errorf("builds: %v, want %v", h.Builds, want)
	}
	// Whatever is zeros again takes nothing.
	h = must(h.Merge(ID{}, []Change{{0, 8 * block, ID{}, 0}}))
	if len(h.Builds) != 0 || len(h.Runs) != 1 {
		t.Errorf("an empty space has builds %v and runs %v", h.Builds, h.Runs)
	}
}

func must(h *Header, err error) *Header {
	if err != nil {
		panic(err)
	}
	return h
}

// golden are the headers of testdata.
func golden() map[string]*Header {
	empty := must(New(1<<30, block))
	first := must(empty.Merge(id(1), []Change{{0, 64 * block, id(1), 0}, {100 * block, block, ID{}, 0}, {1 << 20, 2 << 20, id(1), 64 * block}}))
	second := must(first.Merge(id(2), []Change{{32 * block, 4 * block, id(2), 0}, {1<<30 - block, block, id(2), 4 * block}}))
	return map[string]*Header{"empty": empty, "first": first, "second": second, "large-blocks": must(New(1<<20, 65536))}
}

func TestEncodingIsThatOfTheGoldenFiles(t *testing.T) {
	for name, h := range golden() {
		path := filepath.Join("testdata", name+".hdr")
		b := roundTrip(t, h)
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s: encoded\n%x\nwant\n%x", name, b, want)
		}
	}
}

func TestEveryFlippedBitAndEveryLengthIsRefused(t *testing.T) {
	b := roundTrip(t, golden()["second"])
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Decode(bad); !errors.Is(err, ErrInvalid) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for n := range len(b) {
		if _, err := Decode(b[:n]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("%d bytes of %d: %v", n, len(b), err)
		}
	}
	if _, err := Decode(append(bytes.Clone(b), 0)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("with a byte more: %v", err)
	}
}

// reseal makes the checksum right again.
func reseal(b []byte) []byte {
	body := b[:len(b)-sumSize]
	binary.LittleEndian.PutUint32(b[len(body):], crc32.Checksum(body, castagnoli))
	return b
}

func TestWhatIsAgainstTheFormatIsRefusedInWords(t *testing.T) {
	le := binary.LittleEndian
	for want, change := range map[string]func(b []byte) []byte{
		"format version 2":             func(b []byte) []byte { le.PutUint32(b[8:], 2); return b },
		"magic":                        func(b []byte) []byte { b[0] = 'X'; return b },
		"block size must be":           func(b []byte) []byte { le.PutUint32(b[12:], 5000); return b },
		"size must be":                 func(b []byte) []byte { le.PutUint64(b[16:], 4097); return b },
		"size 18446744073709551615":    func(b []byte) []byte { le.PutUint64(b[16:], math.MaxUint64); return b },
		"4294967295 builds":            func(b []byte) []byte { le.PutUint32(b[28:], math.MaxUint32); return b },
		"and 4294967295 runs":          func(b []byte) []byte { le.PutUint32(b[32:], math.MaxUint32); return b },
		"with 2 builds and 9 runs":     func(b []byte) []byte { le.PutUint32(b[32:], 9); return b },
		"reserved":                     func(b []byte) []byte { b[36] = 1; return b },
		"has the zero id":              func(b []byte) []byte { clear(b[72:88]); return b },
		"is listed twice":              func(b []byte) []byte { copy(b[72:88], b[88:104]); return b },
		"begins at block 1; it must":   func(b []byte) []byte { le.PutUint32(b[104:], 1); return b },
		"has 0 blocks":                 func(b []byte) []byte { le.PutUint32(b[108:], 0); return b },
		"names build 3 of 2":           func(b []byte) []byte { le.PutUint32(b[112:], 3); return b },
		"goes beyond block 2^32":       func(b []byte) []byte { le.PutUint32(b[116:], math.MaxUint32); return b },
		"is zeros and has offset":      func(b []byte) []byte { le.PutUint32(b[112:], 0); le.PutUint32(b[116:], 7); return b },
		"are one and must be merged":   func(b []byte) []byte { le.PutUint32(b[112+16:], 1); le.PutUint32(b[116+16:], 32); return b },
		"is listed but no run names":   func(b []byte) []byte { return renumber(b) },
		"the runs end at block 262143": func(b []byte) []byte { return shorten(b) },
	} {
		b := reseal(change(bytes.Clone(roundTrip(t, golden()["second"]))))
		if _, err := Decode(b); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
}

// renumber makes all runs of build 2 name build 1.
func renumber(b []byte) []byte {
	for at := 104; at+16 <= len(b)-4; at += 16 {
		if binary.LittleEndian.Uint32(b[at+8:]) == 2 {
			binary.LittleEndian.PutUint32(b[at+8:], 1)
			binary.LittleEndian.PutUint32(b[at+12:], 1000)
		}
	}
	return b
}

// shorten takes the last run, of one block, away.
func shorten(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[32:], binary.LittleEndian.Uint32(b[32:])-1)
	return append(b[:len(b)-20], 0, 0, 0, 0)
}

func TestChangesThatCannotBeAreRefused(t *testing.T) {
	h := must(New(8*block, block))
	for want, changes := range map[string][]Change{
		"multiples of the block size": {{1, block, id(1), 0}},
		"must not begin before":       {{block, block, id(1), 0}, {block, block, id(1), block}},
		"not within the space":        {{8 * block, block, id(1), 0}},
		"0 bytes at":                  {{0, 0, id(1), 0}},
		"is zeros and has":            {{0, block, ID{}, block}},
		"is not below 2^32":           {{0, block, id(1), math.MaxInt64 / block * block}},
		"build offset -4096":          {{0, block, id(1), -block}},
		"-4096 bytes":                 {{0, -block, id(1), 0}},
	} {
		if _, err := h.Merge(id(1), changes); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got: %v", want, err)
		}
	}
	many := must(New((MaxBuilds+1)*block, block))
	var changes []Change
	for i := range int64(MaxBuilds + 1) {
		changes = append(changes, Change{i * block, block, ID{1, byte(i), byte(i >> 8)}, 0})
	}
	if _, err := many.Merge(ID{}, changes); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d builds: %v", len(changes), err)
	}
	for _, size := range []int64{0, -block, 1, block + 1, 1 << 44, math.MaxInt64} {
		if _, err := New(size, block); !errors.Is(err, ErrInvalid) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := h.Grow(4 * block); !errors.Is(err, ErrInvalid) {
		t.Errorf("shrinking: %v", err)
	}
}

func TestDecodingIsBoundedByTheInput(t *testing.T) {
	b := roundTrip(t, golden()["second"])
	binary.LittleEndian.PutUint32(b[32:], MaxRuns)
	binary.LittleEndian.PutUint32(b[28:], MaxBuilds)
	n := testing.AllocsPerRun(10, func() { Decode(reseal(b)) })
	if n > 10 { // the error
		t.Errorf("%v allocations for a header that says it is large", n)
	}
}

func TestIDsAreReadAsTheyAreWritten(t *testing.T) {
	a := ID{1, 2, 0xff}
	if b, err := ParseID(a.String()); err != nil || a != b {
		t.Errorf("%s: %v, %v", a, b, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("0", 31), strings.Repeat("g", 32), strings.Repeat("A", 32), strings.Repeat("0", 33)} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q is taken for an id", s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, h := range golden() {
		b, err := h.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > minEncoded {
			b = reseal(bytes.Clone(b)) // else nothing gets past the checksum
		}
		h, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := h.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("it has two encodings: %x and %x (%v)", b, again, err)
		}
		for e := range h.Extents(0, h.Size) {
			if got, ok := h.Lookup(e.Off); !ok || got != e {
				t.Fatalf("lookup of %d: %+v, want %+v", e.Off, got, e)
			}
		}
	})
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{0, 64, 1, 10, 1, 0, 20, 20, 2})
	f.Fuzz(func(t *testing.T, script []byte) {
		const blocks = 64
		h, m := must(New(blocks*block, block)), make(model, blocks)
		for len(script) >= 3 {
			at, n, b := int64(script[0])%blocks, int64(script[1])%blocks+1, script[2]%8
			script = script[3:]
			c := Change{Off: at * block, Len: min(n, blocks-at) * block}
			if b > 0 {
				c.Build, c.Offset = id(b), int64(b)*n*block
			}
			next, err := h.Merge(c.Build, []Change{c})
			if err != nil {
				t.Fatal(err)
			}
			h, m = next, m.apply([]Change{c})
		}
		m.compare(t, h, rand.New(rand.NewPCG(1, 1)))
	})
}

func BenchmarkLookup(b *testing.B) {
	for _, runs := range []int64{1 << 10, 1 << 14, 1 << 18} {
		h := must(New(2*runs*block, block))
		var changes []Change
		for i := range runs {
			changes = append(changes, Change{2 * i * block, block, id(1), i * block})
		}
		h = must(h.Merge(id(1), changes))
		b.Run(fmt.Sprintf("%d-runs", len(h.Runs)), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				h.Lookup(r.Int64N(h.Size))
			}
		})
	}
}
