package main

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
)

// area is a file in the guest whose content the test knows.
type area struct {
	path    string
	content []byte
}

// sum is of a kind that is quick where processors are emulated.
func (a *area) sum() string {
	s := md5.Sum(a.content)
	return hex.EncodeToString(s[:])
}

// scribble writes random blocks at random places, in the guest and in what the test knows.
func scribble(t *testing.T, ctx context.Context, c agentClient, id string, areas []*area, rng *rand.ChaCha8) {
	t.Helper()
	r := rand.New(rng)
	var data []byte
	script := "cat > /dev/shm/in\n"
	for _, a := range areas {
		for range 1 + r.IntN(3) {
			n := 4096 * (1 + r.IntN(16))
			at := 4096 * r.IntN((len(a.content)-n)/4096)
			rng.Read(a.content[at : at+n])
			script += fmt.Sprintf("dd if=/dev/shm/in of=%s bs=4096 skip=%d seek=%d count=%d conv=notrunc 2>/dev/null\n", a.path, len(data)/4096, at/4096, n/4096)
			data = append(data, a.content[at:at+n]...)
		}
	}
	res, err := c.process.Exec(ctx, &guestv1.ExecRequest{SandboxId: id, Cmd: "/bin/sh", Args: []string{"-c", script + "rm /dev/shm/in"}, User: "root", Stdin: data})
	if err != nil || res.GetExitCode() != 0 {
		t.Fatalf("writing in the guest: %v, %v", res, err)
	}
}

func TestFiftyGenerationsKeepEveryByteAndStayShort(t *testing.T) {
	const generations, chain, size = 50, 4, 1 << 20
	conf := testConfig(t, fmt.Sprintf("snapshots: {max_chain: %d}", chain))
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	c := startAgent(t, conf).agentClient
	spec := func() *hostv1.SandboxSpec {
		s := tiny("sb_long")
		s.MemoryMb = 128
		return s
	}
	c.start(t, ctx, spec())
	areas := []*area{{"/dev/shm/area", make([]byte, size)}, {"/root/area", make([]byte, size)}}
	c.sh(t, ctx, "sb_long", fmt.Sprintf("for f in /dev/shm/area /root/area; do dd if=/dev/zero of=$f bs=4096 count=%d 2>/dev/null; done", size/4096))
	seed := [32]byte{1, 9, 8, 4}
	rng := rand.NewChaCha8(seed)
	var half, most int64
	for g := range generations {
		scribble(t, ctx, c, "sb_long", areas, rng)
		snap := fmt.Sprintf("snap_%d", g)
		c.pause(t, ctx, "sb_long", snap)
		if g > 0 {
			// What sandboxd does once nothing names it any more.
			if _, err := c.hosts.RemoveSnapshot(ctx, &hostv1.RemoveSnapshotRequest{SnapshotId: fmt.Sprintf("snap_%d", g-1)}); err != nil {
				t.Fatal(err)
			}
		}
		headers := sizeOf(t, filepath.Join(conf.StateDir, "snapshots/snapshots", snap, "*.hdr"))
		if most = max(most, headers); g == generations/2 {
			half = most
		}
		r := c.resume(t, ctx, spec(), snap).GetReceipt()
		if n := max(len(r.GetMemoryBuilds()), len(r.GetDiskBuilds())); n > 4*chain+1 {
			t.Errorf("generation %d: a header names %d builds", g, n)
		}
		want := areas[0].sum() + "\n" + areas[1].sum()
		look := "md5sum /dev/shm/area /root/area | cut -d' ' -f1"
		if g%4 == 3 {
			look = "sync; echo 3 > /proc/sys/vm/drop_caches; " + look
		}
		if got := c.sh(t, ctx, "sb_long", look); got != want {
			t.Fatalf("generation %d: memory and disk have\n%s\nwant\n%s", g, got, want)
		}
	}
	if most > half*2 {
		t.Errorf("headers had at most %d bytes after %d generations and %d after %d", half, generations/2, most, generations)
	}
	t.Logf("headers have at most %d bytes", most)
	noStrayBuilds(t, conf)
}

func sizeOf(t *testing.T, pattern string) (n int64) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		n += st.Size()
	}
	return n
}

// noStrayBuilds makes sure that every build and every memory image on the host is one that a snapshot or a stock image names.
func noStrayBuilds(t *testing.T, conf Config) {
	t.Helper()
	var named strings.Builder
	for _, pattern := range []string{"snapshots/*/manifest.json", "snapshots/*/squash/*.json", "images/*/image.json"} {
		paths, err := filepath.Glob(filepath.Join(conf.StateDir, "snapshots", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			raw, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			named.Write(raw)
		}
	}
	builds, err := os.ReadDir(filepath.Join(conf.StateDir, "snapshots/builds"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range builds {
		if id, _, _ := strings.Cut(b.Name(), "."); !strings.Contains(named.String(), id) {
			t.Errorf("nothing names build %s, and it is still there", b.Name())
		}
	}
	images, err := filepath.Glob(conf.MemoryDir + "/*.mem")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range images {
		key := strings.TrimSuffix(filepath.Base(path), ".mem")
		if _, err := os.Stat(filepath.Join(conf.StateDir, "snapshots/snapshots", key)); err != nil && !strings.HasPrefix(key, "zeros-") {
			t.Errorf("memory image %s is of no snapshot: %v", key, err)
		}
	}
	t.Logf("%d builds, %d memory images", len(builds), len(images))
}
