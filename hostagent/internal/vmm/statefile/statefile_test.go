package statefile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
)

type description struct {
	VCPUs int    `json:"vcpus"`
	CPU   string `json:"cpu,omitempty"`
}

var (
	format = statefile.Format{Magic: "COVEYTS", Oldest: 1, Version: 2}
	some   = description{VCPUs: 2, CPU: "Nehalem"}
)

func encode(t testing.TB, f statefile.Format, d description, body []byte) []byte {
	t.Helper()
	b, err := f.Encode(d, body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func refused(t *testing.T, f statefile.Format, b []byte, why string) {
	t.Helper()
	var d description
	if _, err := f.Decode(b, &d); !errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), why) {
		t.Errorf("it says %v, want %q", err, why)
	}
}

func TestAFileGivesBackWhatWasWritten(t *testing.T) {
	path, body := filepath.Join(t.TempDir(), "state"), []byte("QEVM and so on")
	if err := format.Write(path, some, body); err != nil {
		t.Fatal(err)
	}
	var d description
	got, err := format.Read(path, &d)
	if err != nil || d != some || !bytes.Equal(got, body) {
		t.Errorf("got %+v, %q, %v", d, got, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v (%v), want that others cannot read it", st.Mode(), err)
	}
}

func TestTheLayoutIsTheDocumentedOne(t *testing.T) {
	const text = `{"vcpus":2,"cpu":"Nehalem"}`
	b := encode(t, format, some, []byte("body"))
	if string(b[:8]) != "COVEYTS\x02" || binary.LittleEndian.Uint32(b[8:]) != uint32(len(text)) || binary.LittleEndian.Uint64(b[12:]) != 4 || string(b[52:]) != text+"body" {
		t.Errorf("it is %q", b)
	}
}

func TestEveryDamageIsFound(t *testing.T) {
	b := encode(t, format, some, bytes.Repeat([]byte("state"), 20))
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		refused(t, format, bad, "")
	}
	for n := range len(b) {
		refused(t, format, b[:n], "")
	}
	refused(t, format, append(b, 0), "after its header")
}

func TestVersionsThatAreUnknownAndOtherDriversFilesAreRefused(t *testing.T) {
	for version, why := range map[byte]string{0: "its format is 0, this host agent reads 1 to 2", 3: "its format is 3"} {
		other := format
		other.Version = version
		refused(t, format, encode(t, other, some, []byte("body")), why)
	}
	former := format
	former.Version = 1
	var d description
	if _, err := format.Decode(encode(t, former, description{VCPUs: 1}, nil), &d); err != nil || d != (description{VCPUs: 1}) {
		t.Errorf("the former version: %+v, %v", d, err)
	}
	refused(t, statefile.Format{Magic: "COVEYXS", Oldest: 1, Version: 3}, encode(t, format, some, nil), "no state file of this driver")
}

func TestNoMoreIsWrittenThanCanBeRead(t *testing.T) {
	if _, err := format.Encode(description{CPU: strings.Repeat("x", statefile.MaxDescription)}, nil); err == nil {
		t.Error("a description that is too long")
	}
	if _, err := format.Encode(some, make([]byte, statefile.MaxBody+1)); err == nil {
		t.Error("a body that is too long")
	}
}

func TestABodyIsWhatTheVMMWroteOrAnError(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "body"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size, legal := range map[int64]bool{0: false, 1: true, statefile.MaxBody: true, statefile.MaxBody + 1: false} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if b, err := statefile.Body(f); (err == nil) != legal || legal && int64(len(b)) != size {
			t.Errorf("%d bytes: %d, %v", size, len(b), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b := encode(f, format, some, []byte("body"))
	f.Add(b)
	huge := bytes.Clone(b)
	binary.LittleEndian.PutUint64(huge[12:], math.MaxUint64)
	f.Add(huge)
	f.Add([]byte(format.Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d description
		body, err := format.Decode(b, &d)
		if err != nil {
			if !errors.Is(err, vmm.ErrIncompatible) {
				t.Fatal(err)
			}
			return
		}
		if _, err := format.Encode(d, body); err != nil {
			t.Fatal(err)
		}
	})
}
