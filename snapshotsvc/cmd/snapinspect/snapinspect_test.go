package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// host makes a host's directory with one snapshot in it, and returns the snapshot's directory and its build's file.
func host(t *testing.T) (dir, buildPath string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "snapshots", "snap_1")
	for _, d := range []string{dir, filepath.Join(root, "builds")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var data bytes.Buffer
	w, err := buildfmt.NewWriter(&data, buildfmt.Options{Kind: buildfmt.Memory, FrameSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		fmt.Fprint(w, strings.Repeat(string(rune('a'+i)), 4096))
	}
	info, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	h, err := snapfmt.New(1<<20, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if h, err = h.Merge(info.ID, []snapfmt.Change{{Off: 8192, Len: 3 * 4096, Build: info.ID}}); err != nil {
		t.Fatal(err)
	}
	encoded, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	buildPath = filepath.Join(root, "builds", info.ID.String())
	put := func(path string, b []byte) map[string]any {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		return map[string]any{"size": len(b), "sha256": hex.EncodeToString(sum[:])}
	}
	body, err := json.Marshal(map[string]any{
		"manifest": map[string]any{"ID": "snap_1", "VCPUs": 2}, "state": put(filepath.Join(dir, "state"), []byte("state")),
		"memory_header": put(filepath.Join(dir, "memory.hdr"), encoded), "disk_header": put(filepath.Join(dir, "disk.hdr"), encoded),
		"builds": []any{map[string]any{"id": info.ID, "data": put(buildPath, data.Bytes())}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	sealed, err := json.Marshal(map[string]any{"version": 1, "sha256": hex.EncodeToString(sum[:]), "body": json.RawMessage(body)})
	if err != nil {
		t.Fatal(err)
	}
	put(filepath.Join(dir, "manifest.json"), sealed)
	return dir, buildPath
}

func inspectAll(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(args, &out, &errs); got != want {
		t.Fatalf("%v ended with %d, want %d\n%s%s", args, got, want, &out, &errs)
	}
	return out.String() + errs.String()
}

func wants(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(out, w) {
			t.Errorf("output lacks %q:\n%s", w, out)
		}
	}
}

func TestASnapshotIsShownWithAllItsParts(t *testing.T) {
	dir, buildPath := host(t)
	id := filepath.Base(buildPath)
	wants(t, inspectAll(t, 0, "-verify", "-runs", dir), `"VCPUs": 2`, "state: 5 bytes, verified", "1024 KiB in blocks of 4096, generation 1, 3 runs",
		"in build "+id+": 12 KiB", "0x2000 +0x3000 build "+id+" at 0x0", "build "+id+" of memory", "zstd: 3 frames", "verified: 3 of 3 frames", "frame 2:")
	var r report
	if err := json.Unmarshal([]byte(inspectAll(t, 0, "-json", dir)), &r); err != nil {
		t.Fatal(err)
	}
	if r.Snapshot == nil || r.Snapshot.Memory.Header.Runs != 3 || r.Snapshot.Builds[0].Build.Frames != 3 {
		t.Errorf("JSON: %+v", r)
	}
}

func TestDamageIsNamedAndEndsWithOne(t *testing.T) {
	dir, buildPath := host(t)
	flip(t, buildPath, 40)
	wants(t, inspectAll(t, 0, buildPath), "3 frames")
	wants(t, inspectAll(t, 1, "-verify", buildPath), "DAMAGED", "is damaged in frame 0")
	wants(t, inspectAll(t, 1, "-verify", dir), "build "+filepath.Base(buildPath)+": ", "DAMAGED: its SHA-256 is")
	flip(t, filepath.Join(dir, "memory.hdr"), 20)
	wants(t, inspectAll(t, 1, filepath.Join(dir, "memory.hdr")), "invalid header")
	if err := os.Truncate(filepath.Join(dir, "state"), 1); err != nil {
		t.Fatal(err)
	}
	wants(t, inspectAll(t, 1, dir), "DAMAGED: it has 1 bytes, must have 5")
	if err := os.Rename(buildPath, filepath.Join(filepath.Dir(buildPath), strings.Repeat("0", 32))); err != nil {
		t.Fatal(err)
	}
	wants(t, inspectAll(t, 1, filepath.Join(filepath.Dir(buildPath), strings.Repeat("0", 32))), "its name says")
	flip(t, filepath.Join(dir, "manifest.json"), 100)
	wants(t, inspectAll(t, 1, dir), "manifest.json: ")
	wants(t, inspectAll(t, 1, filepath.Join(dir, "state")), "too short")
	wants(t, inspectAll(t, 1, filepath.Join(dir, "none")), "no such file")
	wants(t, inspectAll(t, 1, filepath.Join(dir, "manifest.json")), "neither a header nor a build")
	wants(t, inspectAll(t, 2), "usage:")
	wants(t, inspectAll(t, 2, "-what"), "usage:")
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
