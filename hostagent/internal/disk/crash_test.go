package disk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// agentEnv makes the test binary an agent that serves one disk in the directory named, until it is killed.
const agentEnv = "COVEY_TEST_DISK_AGENT"

const crashBlocks = 2048

func beAgent(dir string) {
	s, err := NewStore(filepath.Join(dir, "overlay"), slog.Default())
	if err == nil {
		_, err = s.Create(context.Background(), "sb_1", nil, crashBlocks*BlockSize, filepath.Join(dir, "disk.sock"), os.Getuid())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("serving")
	select {}
}

func TestAKilledAgentLosesNothingThatWasAnswered(t *testing.T) {
	qemu(t, "qemu-io", "--version")
	dir := t.TempDir()
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentEnv+"="+dir)
	said := output(t, agent)
	if !said.Scan() || said.Text() != "serving" {
		t.Fatalf("the agent says %q", said.Text())
	}
	socket := filepath.Join(dir, "disk.sock")
	args := []string{"--image-opts", "-d", "unmap", "driver=nbd,reconnect-delay=30,server.type=unix,server.path=" + socket}
	var checks []string
	for i := range 600 {
		command := fmt.Sprintf("-P %d %d 5000", i%250+1, i*9000)
		args, checks = append(args, "-c", "write "+command), append(checks, "read "+command)
	}
	guest := exec.Command("qemu-io", args...)
	lines := output(t, guest)
	for range 100 {
		lines.Scan()
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = agent.Process.Wait()
	s, err := NewStore(filepath.Join(dir, "overlay"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Reopen(t.Context(), "sb_1", nil, crashBlocks*BlockSize, socket, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard(context.Background())
	for lines.Scan() {
		if strings.Contains(lines.Text(), "failed") {
			t.Error(lines.Text())
		}
	}
	if err := guest.Wait(); err != nil {
		t.Fatal(err)
	}
	qemuIO(t, socket, checks...)
}

// output starts a command, which ends with the test, and returns the lines that it writes.
func output(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = cmd.Stdout
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return bufio.NewScanner(out)
}

func TestAFrozenDiskIsOfOneInstantUnderConcurrentWriters(t *testing.T) {
	const writers, slot = 8, 512 // eight writers in one block
	s := newStore(t)
	d := create(t, s, "sb_1", randomBase(4), 16, socketOf(t))
	var counts [writers]atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	write := func(w int) {
		n := counts[w].Load() + 1
		p := slices.Repeat([]byte(fmt.Sprintf("%016d", n)), slot/16)
		if err := d.WriteAt(ctx, p, int64(w)*slot); err != nil {
			t.Error(err)
		}
		if w == 0 {
			_ = d.Trim(ctx, 8*BlockSize, 4*BlockSize)
		}
		counts[w].Store(n)
	}
	for w := range writers {
		write(w)
		wg.Go(func() {
			for ctx.Err() == nil {
				write(w)
			}
		})
	}
	for range 100 {
		var before [writers]int64
		for w := range writers {
			before[w] = counts[w].Load()
		}
		f, err := d.Freeze(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time the disk has been written on
			for w := range writers {
				p := make([]byte, slot)
				if _, err := f.ReadAt(p, int64(w)*slot); err != nil {
					t.Fatal(err)
				}
				var n int64
				fmt.Sscanf(string(p[:16]), "%d", &n)
				if n < before[w] || string(p) != strings.Repeat(fmt.Sprintf("%016d", n), slot/16) {
					t.Fatalf("writer %d had written %d times; the frozen disk says %s", w, before[w], p[:32])
				}
				before[w] = n
			}
		}
		if err := f.Release(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

func TestLayersStayFewHoweverManySnapshots(t *testing.T) {
	s := newStore(t)
	d := create(t, s, "sb_1", nil, 64, socketOf(t))
	for i := range 20 {
		if err := d.WriteAt(t.Context(), []byte{byte(i + 1)}, int64(i)*BlockSize); err != nil {
			t.Fatal(err)
		}
		f, err := d.Freeze(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Release(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(time.Minute)
	for tick := time.Tick(5 * time.Millisecond); ; {
		files, err := os.ReadDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 4 {
			break
		}
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("%d files and not those of two layers", len(files))
		}
	}
	if got := diskContents(t, d); got[0] != 1 || got[19*BlockSize] != 20 {
		t.Error("content was lost")
	}
}

func TestAFrozenDiskOutlivesItsDisk(t *testing.T) {
	s := newStore(t)
	d := create(t, s, "sb_1", nil, 8, socketOf(t))
	if err := d.WriteAt(t.Context(), []byte("kept"), 5000); err != nil {
		t.Fatal(err)
	}
	f, err := d.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := f.ReadAt(p, 5000); err != nil || string(p) != "kept" {
		t.Errorf("read %q, %v", p, err)
	}
	if err := errors.Join(f.Release(), f.Release()); err != nil {
		t.Error(err)
	}
	if _, err := d.Freeze(t.Context()); err == nil {
		t.Error("a discarded disk could be frozen")
	}
}

func TestReopenRefusesWhatIsNotTheOverlayAndSweepRemovesIt(t *testing.T) {
	s := newStore(t)
	reopen := func(id string, size int64) error {
		d, err := s.Reopen(t.Context(), id, nil, size, socketOf(t), os.Getuid())
		if err == nil {
			d.Close()
		}
		return err
	}
	if err := reopen("sb_1", BlockSize); !errors.Is(err, ErrNoOverlay) {
		t.Errorf("a disk that was never made: %v", err)
	}
	d, err := s.Create(t.Context(), "sb_1", nil, 8*BlockSize, socketOf(t), os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if err := reopen("sb_1", 8*BlockSize); err == nil {
		t.Error("an open disk was opened again")
	}
	if removed, err := s.Sweep(nil); len(removed) > 0 || err != nil {
		t.Errorf("swept an open disk: %v, %v", removed, err)
	}
	d.Close()
	if err := reopen("sb_1", 9*BlockSize); err == nil || !strings.Contains(err.Error(), "32768 bytes and not 36864") {
		t.Errorf("another size: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "sb_1.0.map"), []byte{0, 7}, 0); err != nil {
		t.Fatal(err)
	}
	if err := reopen("sb_1", 8*BlockSize); err == nil || !strings.Contains(err.Error(), "says 7 of block 1") {
		t.Errorf("a damaged map: %v", err)
	}
	if removed, err := s.Sweep([]string{"sb_1"}); len(removed) > 0 || err != nil {
		t.Errorf("swept what is to be kept: %v, %v", removed, err)
	}
	if removed, err := s.Sweep([]string{"sb_2"}); len(removed) != 2 || err != nil {
		t.Errorf("swept %v, %v", removed, err)
	}
}

func TestIllegalDisksAreRefused(t *testing.T) {
	s := newStore(t)
	for name, c := range map[string]struct {
		id   string
		base Base
		size int64
	}{
		"id":          {"../sb", nil, BlockSize},
		"no size":     {"sb_1", nil, 0},
		"odd size":    {"sb_1", nil, BlockSize + 1},
		"larger base": {"sb_1", randomBase(2), BlockSize},
	} {
		if d, err := s.Create(t.Context(), c.id, c.base, c.size, socketOf(t), os.Getuid()); err == nil {
			t.Errorf("%s was accepted", name)
			d.Discard(t.Context())
		}
	}
}

// cut is a context that ends after it was asked some times.
type cut struct {
	context.Context
	left int
}

func (c *cut) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestAMergeCutAnywhereLosesNothing(t *testing.T) {
	const blocks = 200
	s := newStore(t)
	var layers stack
	for n := range 3 {
		l, err := createLayer(s.dir, "sb_1", n, blocks*BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		for b := range int64(blocks) {
			switch rand.IntN(3) {
			case 0:
				err = l.write(bytes.Repeat([]byte{byte(rand.IntN(255) + 1)}, BlockSize), b*BlockSize)
			case 1:
				err = l.setZero(b, b+1)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		layers = append(layers, l)
	}
	d := newDisk(s, "sb_1", randomBase(blocks), blocks*BlockSize, layers)
	want := diskContents(t, d)
	cuts := 0
	for ; ; cuts++ {
		err := merge(&cut{t.Context(), cuts}, layers[0], layers[1])
		if !bytes.Equal(diskContents(t, d), want) {
			t.Fatalf("content differs after a merge that was cut after %d steps", cuts)
		}
		if err == nil {
			break
		}
	}
	if err := d.takeOut(layers[1]); err != nil {
		t.Fatal(err)
	}
	if cuts < 50 || !bytes.Equal(diskContents(t, d), want) {
		t.Errorf("content differs after the merge, which was cut %d times", cuts)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := s.Reopen(t.Context(), "sb_1", d.base, d.size, socketOf(t), os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(diskContents(t, d), want) || len(d.stack) != 2 {
		t.Errorf("content differs after Reopen, with %d layers", len(d.stack))
	}
	if err := d.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
}
