package preload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

const (
	mib    = 1 << 20
	nobody = 65534
)

// rig is a pager, and a directory that the VMM's user may enter.
type rig struct {
	cache *pager.Cache
	dir   string
}

func newRig(t *testing.T) rig {
	t.Helper()
	mem, err := os.MkdirTemp("/dev/shm", "covey-preload-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(mem) })
	dir, err := os.MkdirTemp("/tmp", "covey-preload-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	c, err := pager.NewCache(pager.Config{Dir: mem})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return rig{c, dir}
}

// session serves an image to user nobody.
func (r rig) session(t *testing.T, id string, img *pager.Image) *pager.Session {
	t.Helper()
	s, err := r.cache.Serve(t.Context(), id, img, filepath.Join(r.dir, id), nobody)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		img.Release()
	})
	return s
}

// command is a VMM of user nobody with the object; its memory file is MemPath(3).
func (r rig) command(t *testing.T, img *pager.Image, s *pager.Session, name string, args ...string) *exec.Cmd {
	t.Helper()
	object, err := Build(t.Context(), r.dir)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	cmd := exec.Command(name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(Env(object, 3, 4, s.Socket()), "PATH="+os.Getenv("PATH"))
	cmd.ExtraFiles = []*os.File{img.File(), dev}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL,
	}
	return cmd
}

func TestAProgramThatMapsTheMemoryFileSharedGetsAPrivatePagedMapping(t *testing.T) {
	r := newRig(t)
	mapper := filepath.Join(r.dir, "mapper")
	if out, err := exec.Command("gcc", "-O1", "-o", mapper, "testdata/mapper.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := pagertest.Pattern{Seed: 1, Bytes: 4 * mib, Zeros: 3}
	img, err := r.cache.Open("snap_m", p, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := r.session(t, "sb_m", img)
	out, err := r.command(t, img, s, mapper, MemPath(3)).CombinedOutput()
	want := fmt.Sprintf("write: Bad file descriptor\nsecond: Device or resource busy\nsum: %d\nchild: Segmentation fault\nwrote: 18\n", sumOf(t, p))
	if err != nil || string(out) != want {
		t.Errorf("it says\n%s(%v), want\n%s", out, err, want)
	}
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

func TestAVMMThatFindsNoPagerEndsWithOneLine(t *testing.T) {
	r := newRig(t)
	mapper := filepath.Join(r.dir, "mapper")
	if out, err := exec.Command("gcc", "-O1", "-o", mapper, "testdata/mapper.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	img, err := r.cache.Zeros(mib)
	if err != nil {
		t.Fatal(err)
	}
	s := r.session(t, "sb_m", img)
	cmd := r.command(t, img, s, mapper, MemPath(3))
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, _ := cmd.CombinedOutput()
	want := "covey-preload: connecting to the pager at COVEY_PAGER_SOCKET: No such file or directory\n"
	if code := cmd.ProcessState.ExitCode(); code != 127 || string(out) != want {
		t.Errorf("exit code %d and %q, want 127 and %q", code, out, want)
	}
}

// sumOf is what mapper computes.
func sumOf(t *testing.T, p pagertest.Pattern) (sum uint64) {
	t.Helper()
	memory := make([]byte, p.Bytes)
	if _, err := p.ReadAt(t.Context(), memory, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range memory {
		sum += uint64(b) * uint64(1+i%251)
	}
	return sum
}
