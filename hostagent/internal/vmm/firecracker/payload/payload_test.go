package payload

import (
	"bytes"
	"debug/elf"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "assemble counter.bin anew")

func TestTheBytesAreWhatTheSourceSays(t *testing.T) {
	for _, tool := range []string{"as", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no assembler here (Debian package binutils): %v", err)
		}
	}
	dir := t.TempDir()
	object, raw := filepath.Join(dir, "counter.o"), filepath.Join(dir, "counter.bin")
	for _, args := range [][]string{
		{"as", "--64", "--defsym", "DELAY=10000", "-o", object, filepath.Join("asm", "counter.S")},
		{"objcopy", "-O", "binary", "-j", ".text", object, raw},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("counter.bin", got, 0o644); err != nil {
			t.Fatal(err)
		}
		code = got
	}
	if !bytes.Equal(got, code) {
		t.Error("counter.bin is not what asm/counter.S assembles to: run go test -update")
	}
}

func TestItIsAnELFThatLoadsWhereItIsEntered(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(ELF()))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != elf.EM_X86_64 || f.Entry != Load || len(f.Progs) != 1 {
		t.Fatalf("it is %+v with %d segments", f.FileHeader, len(f.Progs))
	}
	p := f.Progs[0]
	got := make([]byte, p.Filesz)
	if _, err := p.ReadAt(got, 0); err != nil || !bytes.Equal(got, code) || p.Paddr != Load {
		t.Errorf("the segment is at %#x (%v), and does it hold the code: %v", p.Paddr, err, bytes.Equal(got, code))
	}
}

func TestExpectFollowsFromTheCount(t *testing.T) {
	ring := [RingPages]uint64{}
	for n := uint64(1); n < 50; n++ {
		ring[n%RingPages] = n
		for i := range ring {
			if got, _ := Expect(n, i); got != ring[i] {
				t.Fatalf("after %d counts page %d holds %d, expected %d", n, i, ring[i], got)
			}
		}
	}
}
