package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// bzImage makes a kernel image around a payload, as Documentation/x86/boot.rst has it.
func bzImage(t *testing.T, elf []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := lz4.NewWriter(&packed)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(elf); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	payload := binary.LittleEndian.AppendUint32(packed.Bytes(), uint32(len(elf)))
	bz := make([]byte, 512*5+100)
	bz[0x1f1] = 4
	copy(bz[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(bz[0x248:], 100)
	binary.LittleEndian.PutUint32(bz[0x24c:], uint32(len(payload)))
	return append(bz, payload...)
}

func TestVmlinuxIsWhatTheBzImageUnpacks(t *testing.T) {
	elf := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 10000)...)
	bz := bzImage(t, elf)
	if got, err := extractVmlinux(bz); err != nil || !bytes.Equal(got, elf) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for what, damage := range map[string]func([]byte) []byte{
		"no signature":     func(b []byte) []byte { b[0x202] = 0; return b },
		"cut off":          func(b []byte) []byte { return b[:len(b)-5] },
		"another packing":  func(b []byte) []byte { b[512*5+100] = 0xfd; return b },
		"a wrong size":     func(b []byte) []byte { b[len(b)-1] = 9; return b },
		"damaged payload":  func(b []byte) []byte { clear(b[512*5+110 : 512*5+140]); return b },
		"not ELF":          func([]byte) []byte { return bzImage(t, []byte("something else")) },
		"nearly no length": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x24c:], 3); return b },
		"a huge offset":    func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x248:], 1<<31); return b },
		"empty":            func([]byte) []byte { return nil },
	} {
		if got, err := extractVmlinux(damage(bytes.Clone(bz))); err == nil {
			t.Errorf("%s: %d bytes and no error", what, len(got))
		}
	}
}

func TestTheArchiveIsReadByCpio(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs cpio")
	}
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.add("dir", 0o040755, nil)
	c.add("dir/odd", 0o100755, []byte("12345"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "dir/odd"))
	st, statErr := os.Stat(filepath.Join(dir, "dir/odd"))
	if err != nil || statErr != nil || string(got) != "12345" || st.Mode().Perm() != 0o755 {
		t.Errorf("%q, %v, %v", got, err, statErr)
	}
}

func TestAPartIsMadeOnceAndNeverHalf(t *testing.T) {
	b := &Builder{Progress: io.Discard}
	path := filepath.Join(t.TempDir(), "part")
	made := 0
	if err := b.once(path, "part", func(tmp string) error {
		made++
		return errors.Join(os.WriteFile(tmp, nil, 0o644), errors.New("it broke"))
	}); err == nil {
		t.Fatal("no error")
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	for range 2 {
		if err := b.once(path, "part", func(tmp string) error { made++; return os.WriteFile(tmp, []byte("x"), 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	if made != 2 {
		t.Errorf("made %d times", made)
	}
}

func TestAnUnknownImageIsRefusedByName(t *testing.T) {
	b := &Builder{Progress: io.Discard}
	if _, err := b.image(context.Background(), "debian"); err == nil || !strings.Contains(err.Error(), "base and tiny") {
		t.Errorf("%v", err)
	}
}

// The control plane has these sizes as its defaults (services/cmd/sandboxd).
func TestTheImagesHaveTheSizesThatTheControlPlaneExpects(t *testing.T) {
	for name, want := range map[string]int{"base": 8192, "tiny": 512} {
		if got := recipes[name].diskMB; got != want {
			t.Errorf("%s: %d MiB, want %d", name, got, want)
		}
	}
}
