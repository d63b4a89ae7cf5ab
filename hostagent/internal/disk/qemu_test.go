package disk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// qemu runs one of QEMU's tools, which are NBD clients that we did not write.
func qemu(t *testing.T, tool string, args ...string) string {
	t.Helper()
	out, err := tryQEMU(t, tool, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return out
}

func tryQEMU(t *testing.T, tool string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		message := tool + " is not here: install the package qemu-utils"
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput()
	return string(out), err
}

func uri(socket string) string { return "nbd+unix:///?socket=" + socket }

// qemuIO runs commands of qemu-io, which checks patterns that it reads.
func qemuIO(t *testing.T, socket string, commands ...string) string {
	t.Helper()
	args := []string{"-f", "raw", "-d", "unmap", uri(socket)}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := qemu(t, "qemu-io", args...)
	if strings.Contains(out, "failed") {
		t.Fatalf("qemu-io says:\n%s", out)
	}
	return out
}

func TestQEMUReadsBackWhatItWrote(t *testing.T) {
	const blocks = 4096
	base := &memory{data: bytes.Repeat([]byte{0xba}, 1024*BlockSize)}
	s, socket := newStore(t), socketOf(t)
	d := create(t, s, "sb_1", base, blocks, socket)
	qemuIO(t, socket, "read -P 0xba 0 4M", "read -P 0 4M 12M",
		"write -P 1 0 64k", "write -P 2 1000 5000", "write -f -P 3 100k 1", "flush",
		"write -z 8k 10000", "write -z -u 1M 1M", "discard 2M 1M", "write -P 4 4M 8M", "write -P 5 16777215 1")
	// Another connection sees the same, and so does one to the next agent.
	checks := []string{"read -P 1 0 1000", "read -P 2 1000 5000", "read -P 1 6000 2192", "read -P 0 8192 10000", "read -P 1 18192 47344",
		"read -P 3 102400 1", "read -P 0xba 102401 10000", "read -P 0 1M 2M", "read -P 0xba 3M 1M", "read -P 4 4M 8M", "read -P 0 12M 4194303",
		"read -P 5 16777215 1"}
	qemuIO(t, socket, checks...)
	d = reopen(t, s, d, socket)
	qemuIO(t, socket, checks...)
	if n, err := d.OverlayBytes(); err != nil || n > 9<<20 {
		t.Errorf("overlay takes %d bytes, %v", n, err)
	}
}

func TestQEMUIsToldWhatItCanDo(t *testing.T) {
	s, socket := newStore(t), socketOf(t)
	create(t, s, "sb_1", nil, 256, socket)
	if out := qemu(t, "qemu-img", "info", "-f", "raw", uri(socket)); !strings.Contains(out, "1 MiB (1048576 bytes)") {
		t.Errorf("qemu-img info says:\n%s", out)
	}
	out := qemu(t, "qemu-nbd", "--list", "--socket", socket)
	for _, want := range []string{"size:  1048576", "flush fua trim zeroes multi", "min block: 1", "opt block: 4096", "max block: 2097152"} {
		if !strings.Contains(out, want) {
			t.Errorf("qemu-nbd --list does not say %q:\n%s", want, out)
		}
	}
}

func TestDiscardsGiveSpaceBack(t *testing.T) {
	s, socket := newStore(t), socketOf(t)
	d := create(t, s, "sb_1", nil, 8192, socket)
	before, err := d.OverlayBytes()
	if err != nil {
		t.Fatal(err)
	}
	qemuIO(t, socket, "write -P 1 0 16M")
	full, _ := d.OverlayBytes()
	qemuIO(t, socket, "discard 0 16M")
	if after, _ := d.OverlayBytes(); full < before+16<<20 || after > before+64<<10 {
		t.Errorf("overlay took %d bytes, then %d, then %d", before, full, after)
	}
}

func TestAnImageCopiedThroughIsTheSame(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	image := randomBase(5000).data
	clear(image[1<<20 : 9<<20])
	if err := os.WriteFile(from, image, 0o600); err != nil {
		t.Fatal(err)
	}
	s, socket := newStore(t), socketOf(t)
	d := create(t, s, "sb_1", randomBase(5000), 5000, socket)
	qemu(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", from, uri(socket))
	qemu(t, "qemu-img", "convert", "-W", "-m", "16", "-f", "raw", "-O", "raw", uri(socket), to)
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, image) || !bytes.Equal(diskContents(t, d), image) {
		t.Fatalf("the copy differs, %v", err)
	}
}

func TestABaseThatFailsIsAnIOErrorAndTheDiskGoesOn(t *testing.T) {
	base := randomBase(64)
	s, socket := newStore(t), socketOf(t)
	create(t, s, "sb_1", base, 128, socket)
	base.mu.Lock()
	base.broken = fmt.Errorf("build 0123 is missing")
	base.mu.Unlock()
	out, _ := tryQEMU(t, "qemu-io", "-f", "raw", uri(socket), "-c", "write -P 7 0 4k", "-c", "read -P 7 0 4k", "-c", "read 4k 4k", "-c", "read -P 0 256k 4k")
	if failed, done := strings.Count(out, "failed: Input/output error"), strings.Count(out, "read 4096/4096"); failed != 1 || done != 2 {
		t.Errorf("%d reads failed and not one, %d went through and not two:\n%s", failed, done, out)
	}
}
