package firecracker

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

func decodeState(b []byte) (meta stateMeta, body []byte, err error) {
	body, err = format.Decode(b, &meta)
	return meta, body, err
}

func TestReleasesAreRecognised(t *testing.T) {
	for series, want := range map[string]release{
		"1.7":  {series: "1.7", format: 1},
		"1.12": {series: "1.12", format: 6, overrides: true},
		"1.16": {series: "1.16", format: 10, overrides: true, trackOnLoad: true},
		"1.17": {series: "1.17", overrides: true, trackOnLoad: true},
		"2.0":  {series: "2.0", overrides: true, trackOnLoad: true},
	} {
		major, minor, _ := strings.Cut(series, ".")
		if got, err := releaseOf(major, minor); err != nil || got != want {
			t.Errorf("%s is taken for %+v (%v)", series, got, err)
		}
	}
	for _, old := range []string{"6", "0"} {
		if _, err := releaseOf("1", old); err == nil || !strings.Contains(err.Error(), "1.7 or later") {
			t.Errorf("1.%s: %v", old, err)
		}
	}
	if _, err := releaseOf("0", "25"); err == nil {
		t.Error("0.25 is taken")
	}
}

func versionOf(t *testing.T, text string, major int) version {
	t.Helper()
	parts := strings.Split(text, ".")
	r, err := releaseOf(parts[0], parts[1])
	if err != nil {
		t.Fatal(err)
	}
	return version{text: text, major: major, release: r}
}

func TestARefusalSaysWhichCanLoadTheState(t *testing.T) {
	saved := stateMeta{Version: "1.13.1", Major: 8, Layout: layoutVersion, Processor: "A", VCPUs: 1, MemoryBytes: 1 << 20, Disk: true, TAP: "tap0"}
	for _, x := range []struct {
		name   string
		on     version
		change func(have, mine *stateMeta)
		want   string
	}{
		{"the same", versionOf(t, "1.13.1", 8), nil, ""},
		{"the same format", versionOf(t, "1.14.0", 8), nil, ""},
		{"another TAP", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.TAP = "tap9" }, ""},
		{"later", versionOf(t, "1.16.1", 10), nil, "Firecracker 1.13 or 1.14 can (state format 8.0)"},
		{"a later minor", versionOf(t, "1.14.0", 8), func(have, _ *stateMeta) { have.Minor = 2 }, "state format 8.2"},
		{"unknown", versionOf(t, "1.14.0", 8), func(have, _ *stateMeta) { have.Major = 77 }, "a Firecracker of state format 77.0"},
		{"another processor", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.Processor = "B" }, "the same vendor, family, model and stepping can load it"},
		{"a TAP that cannot be renamed", versionOf(t, "1.11.0", 8), func(_, mine *stateMeta) { mine.TAP = "tap9" }, "1.12 or later can"},
		{"vCPUs", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.VCPUs = 2 }, "number of vCPUs is 1, the VM's is 2"},
		{"memory", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.MemoryBytes *= 2 }, "memory in bytes"},
		{"no disk", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.Disk = false }, "disk is true"},
		{"no network", versionOf(t, "1.14.0", 8), func(_, mine *stateMeta) { mine.TAP = "" }, "network card is true"},
		{"layout", versionOf(t, "1.14.0", 8), func(have, _ *stateMeta) { have.Layout = 0 }, "layout is 0"},
	} {
		have, mine := saved, saved
		if x.change != nil {
			x.change(&have, &mine)
		}
		err := have.fits(x.on, mine)
		switch {
		case x.want == "" && err != nil:
			t.Errorf("%s: %v", x.name, err)
		case x.want != "" && (!errors.Is(err, vmm.ErrIncompatible) || !strings.Contains(err.Error(), x.want)):
			t.Errorf("%s: it says %v, want %q", x.name, err, x.want)
		}
	}
}

func TestADamagedStateIsRefused(t *testing.T) {
	meta := stateMeta{Version: "1.16.1", Major: 10, Processor: "A", VCPUs: 1}
	whole, err := format.Encode(meta, []byte("a state"))
	if err != nil {
		t.Fatal(err)
	}
	if got, body, err := decodeState(whole); err != nil || !reflect.DeepEqual(got, meta) || string(body) != "a state" {
		t.Errorf("%+v, %q, %v", got, body, err)
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if _, _, err := decodeState(b); !errors.Is(err, vmm.ErrIncompatible) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, _, err := decodeState(whole[:i]); !errors.Is(err, vmm.ErrIncompatible) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	whole, err := format.Encode(stateMeta{Version: "1.16.1"}, []byte("a state"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(format.Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := decodeState(b); err != nil && !errors.Is(err, vmm.ErrIncompatible) {
			t.Error(err)
		}
	})
}

func TestWhatTheGuestSaysLastIsUnderstood(t *testing.T) {
	for text, want := range map[string][2]string{
		"[    1.234567] reboot: System halted\r\n":                                    {"", "halted"},
		"reboot: Power down\n":                                                        {"", "halted"},
		"my program says reboot: Power down\n":                                        {"", ""},
		"[    0.5] Kernel panic - not syncing: sysrq triggered crash\r\n[ 0.6] CPU\n": {"sysrq triggered crash", ""},
	} {
		halts := 0
		c, err := openConsole(t.TempDir()+"/console", func() { halts++ })
		if err != nil {
			t.Fatal(err)
		}
		// However it is cut into reads.
		for _, b := range []byte(text) {
			c.take([]byte{b})
		}
		c.take([]byte(text))
		c.f.Close()
		panic, halted := c.end()
		if panic != want[0] || halted != (want[1] != "") || halted && halts != 1 {
			t.Errorf("%q: panic %q, halted %v (%d times)", text, panic, halted, halts)
		}
	}
}
