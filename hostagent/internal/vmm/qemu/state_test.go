package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

var someMeta = stateMeta{
	CPU:     vmm.CPU{Machine: "m", Model: "Nehalem-v1,-sse4.2", Features: []string{"sse2"}, Masked: []string{"sse4_2"}},
	Machine: "m", Version: "7.2.22", VCPUs: 2, MemoryBytes: 1 << 28, Disk: true, Network: true, TSCKHz: 2000000,
}

func decodeState(b []byte) (meta stateMeta, body []byte, err error) {
	body, err = format.Decode(b, &meta)
	return meta, body, err
}

func TestAStateFileGivesBackWhatWasWrapped(t *testing.T) {
	body := []byte("QEVM and so on")
	b, err := format.Encode(someMeta, body)
	if err != nil {
		t.Fatal(err)
	}
	meta, got, err := decodeState(b)
	if err != nil || !reflect.DeepEqual(meta, someMeta) || !bytes.Equal(got, body) {
		t.Errorf("got %+v, %q, %v", meta, got, err)
	}
}

func TestEveryDamageOfAStateFileIsFound(t *testing.T) {
	b, err := format.Encode(someMeta, bytes.Repeat([]byte("state"), 20))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, err := decodeState(bad); !errors.Is(err, vmm.ErrIncompatible) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for n := range len(b) {
		if _, _, err := decodeState(b[:n]); !errors.Is(err, vmm.ErrIncompatible) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestAStateLoadsOnlyIntoAVMLikeItsOwn(t *testing.T) {
	later := someMeta
	later.Version, later.TSCKHz = "7.2.99", 1
	if err := someMeta.fits(later); err != nil {
		t.Errorf("a bug fix of QEMU, and another clock: %v", err)
	}
	for what, change := range map[string]func(*stateMeta){
		"vcpus":  func(m *stateMeta) { m.VCPUs++ },
		"memory": func(m *stateMeta) { m.MemoryBytes++ }, "disk": func(m *stateMeta) { m.Disk = false }, "network": func(m *stateMeta) { m.Network = false },
	} {
		mine := someMeta
		change(&mine)
		if err := someMeta.fits(mine); !errors.Is(err, vmm.ErrIncompatible) {
			t.Errorf("another %s: %v", what, err)
		}
	}
}

func TestAStateOfTheFormerFormatHasTheStandardProcessor(t *testing.T) {
	former := someMeta
	former.CPU = vmm.CPU{}
	b, err := format.Encode(former, []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	b[len(format.Magic)] = formerState
	meta, _, err := decodeState(b)
	if err != nil || !reflect.DeepEqual(meta, former) {
		t.Fatalf("got %+v, %v", meta, err)
	}
	p := processors{series: "7.2", accel: vmm.TCG, model: emulated, plain: []string{"sse2", "sse4_2"}, has: []string{"sse2"}}
	if c := p.saved(meta); c.Machine != "m" || c.Model != emulated || !slices.Equal(c.Features, p.plain) {
		t.Errorf("its processor is %+v", c)
	}
	b[len(format.Magic)] = format.Version + 1
	if _, _, err := decodeState(b); !errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), "its format is 3") {
		t.Errorf("a later format: %v", err)
	}
}

func TestTheDriftOfAGuestsClockIsKnown(t *testing.T) {
	faster := someMeta
	faster.TSCKHz = 2200000
	if d := someMeta.drift(faster); math.Abs(d-0.1) > 1e-9 {
		t.Errorf("drift %g, want 0.1", d)
	}
	if d := someMeta.drift(stateMeta{}); d != 0 {
		t.Errorf("drift %g where nothing is known", d)
	}
}

func FuzzDecodeState(f *testing.F) {
	b, _ := format.Encode(someMeta, []byte("body"))
	f.Add(b)
	huge := bytes.Clone(b)
	binary.LittleEndian.PutUint64(huge[12:], math.MaxUint64)
	f.Add(huge)
	f.Add([]byte(format.Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		meta, body, err := decodeState(b)
		if err != nil {
			if !errors.Is(err, vmm.ErrIncompatible) {
				t.Fatal(err)
			}
			return
		}
		if _, err := format.Encode(meta, body); err != nil {
			t.Fatal(err)
		}
	})
}
