package vmmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Artifacts is where the guest's kernel and initramfs are. Without them the test ends with the sentence what to do.
func Artifacts(t *testing.T) string {
	t.Helper()
	const missing = "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` in the repository and set COVEY_ARTIFACTS=DIR (make test does)"
	dir := os.Getenv("COVEY_ARTIFACTS")
	if dir == "" {
		if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return dir
}

// buildInitramfs puts testguest behind an initramfs with the virtio modules.
func buildInitramfs(t *testing.T, base, out string) {
	t.Helper()
	dir := t.TempDir()
	guest := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "github.com/coveyhq/covey/hostagent/internal/vmm/vmmtest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build testguest: %v\n%s", err, out)
	}
	first, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	init, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, append(pad(first), archive("init", init)...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// archive packs one executable file as the kernel unpacks it (buffer-format.rst in its documentation, "newc").
func archive(name string, body []byte) []byte {
	var b bytes.Buffer
	entry := func(name string, mode int, body []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			1, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(body)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry(name, 0o100755, body)
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// pad makes the length a multiple of four, where the next archive may begin.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
