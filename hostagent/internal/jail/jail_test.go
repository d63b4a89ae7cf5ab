package jail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// kinds are the controllers that can be tried on this machine.
func kinds(t *testing.T) map[string]controllers {
	all := map[string]controllers{"users only": nil}
	c, err := findControllers()
	if err != nil {
		t.Logf("no controllers here: %v", err)
	} else {
		all["as found"] = c
	}
	if cgroups.Mode() == cgroups.Hybrid {
		all["v2 of a hybrid machine"] = unified{"/sys/fs/cgroup/unified"}
	}
	return all
}

func newJail(t *testing.T, owner, dir string, c controllers) *Jail {
	t.Helper()
	j, err := New(Config{Owner: t.Name() + owner, Dir: dir, UIDBase: 345000, UIDs: 100, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	found := j.controllers
	j.controllers = c
	t.Cleanup(func() {
		err := j.Close()
		j.controllers = found
		if err := errors.Join(err, j.Close()); err != nil {
			t.Error(err)
		}
		if c == nil {
			return
		}
		for _, dir := range c.dirs(j.group) {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return j
}

func each(t *testing.T, f func(t *testing.T, dir string, c controllers)) {
	for name, c := range kinds(t) {
		t.Run(name, func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "covey", "jail"), c) })
	}
}

func cageOf(t *testing.T, c machine.Cage, err error) *Cage {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c.(*Cage)
}

// run starts a command in a cage as its launcher would. Whoever kills it, it is waited for.
func run(t *testing.T, c *Cage, command string) (pid int, ended chan error) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.UID()), Gid: uint32(c.GID())}}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- cmd.Wait() })
	t.Cleanup(func() { _ = cmd.Process.Kill(); wg.Wait() })
	for _, file := range c.Procs() {
		if err := os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, ended
}

func TestRemoveKillsWhatIsLeftAndGivesTheUserBack(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		j := newJail(t, "", dir, c)
		made, err := j.Make(t.Context(), "sb_1", 1, 128*mib)
		cage := cageOf(t, made, err)
		_, ended := run(t, cage, "sleep 1000 & sleep 1000")
		if err := cage.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the process ended with %v", err)
		}
		if left, _ := processesOf(cage.UID()); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
		if ours, taken, err := j.records.find(); len(ours)+len(taken) > 0 || err != nil {
			t.Errorf("records left: %v %v, %v", ours, taken, err)
		}
	})
}

func TestCPUTimeIsWhatWasUsed(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		j := newJail(t, "", dir, c)
		made, err := j.Make(t.Context(), "sb_1", 1, 128*mib)
		cage := cageOf(t, made, err)
		run(t, cage, "while :; do :; done")
		err = poll(t.Context(), func() (bool, error) {
			used, err := cage.CPUTime()
			return used > 50*time.Millisecond || err != nil, err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestWhatAThreadWantsIsItsTimeOnACPUAndItsWaitForOne(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		j := newJail(t, "", dir, c)
		made, err := j.Make(t.Context(), "sb_1", 1, 128*mib)
		cage := cageOf(t, made, err)
		run(t, cage, "while :; do :; done")
		began := time.Now()
		err = poll(t.Context(), func() (bool, error) {
			all, err := cage.Wanted()
			for _, d := range all {
				if d > time.Since(began)+time.Minute {
					return false, fmt.Errorf("%s is more than there was", d)
				}
				if d > 50*time.Millisecond {
					return true, err
				}
			}
			return false, err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestUsersAreUniqueAmongAgentsAndKeptAcrossRestarts(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		a, b := newJail(t, "a", dir, c), newJail(t, "b", dir, c)
		seen := map[int]bool{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 20 {
			for _, j := range []*Jail{a, b} {
				wg.Go(func() {
					made, err := j.Make(t.Context(), "sb_"+strconv.Itoa(i), 1, 128*mib)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if seen[made.UID()] || made.UID() < 345000 || made.GID() != made.UID() {
						t.Errorf("user %d, group %d", made.UID(), made.GID())
					}
					seen[made.UID()] = true
				})
			}
		}
		wg.Wait()
		ours, _, err := a.records.find()
		if err != nil {
			t.Fatal(err)
		}
		again := newJail(t, "a", dir, c)
		if opened, err := again.Open(t.Context(), "sb_7", 1, 128*mib); err != nil || opened.UID() != ours["sb_7"] {
			t.Errorf("opened %v, %v", opened, err)
		}
		removed, err := again.Sweep([]string{"sb_7", "sb_8"})
		if err != nil || len(removed) != 18 || slices.Contains(removed, "sb_7") {
			t.Errorf("swept %v, %v", removed, err)
		}
		for _, j := range []*Jail{again, b} {
			if _, err := j.Sweep(nil); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSweepKillsTheVMMsOfAKilledAgent(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		made, err := newJail(t, "", dir, c).Make(t.Context(), "sb_1", 1, 128*mib)
		_, ended := run(t, cageOf(t, made, err), "sleep 1000")
		if removed, err := newJail(t, "", dir, c).Sweep(nil); err != nil || len(removed) != 1 {
			t.Errorf("swept %v, %v", removed, err)
		}
		if err := <-ended; err == nil {
			t.Error("the process ended by itself")
		}
	})
}

func TestASecondRemoveHarmsNobody(t *testing.T) {
	each(t, func(t *testing.T, dir string, c controllers) {
		j := newJail(t, "", dir, c)
		made, err := j.Make(t.Context(), "sb_1", 1, 128*mib)
		first := cageOf(t, made, err)
		made, err = j.Make(t.Context(), "sb_1", 1, 128*mib) // in place of the first, which is removed
		second := cageOf(t, made, err)
		if err := errors.Join(j.cage("sb_2", second.UID()).Remove(t.Context()), j.records.drop("sb_1", first.UID())); err != nil {
			t.Fatal(err)
		}
		if ours, _, err := j.records.find(); ours["sb_1"] != second.UID() || err != nil {
			t.Errorf("records are %v, %v", ours, err)
		}
	})
}

func TestLimitsReachTheKernel(t *testing.T) {
	c, err := findControllers()
	if err != nil {
		t.Skipf("this machine offers no cgroups: %v", err)
	}
	j := newJail(t, "", t.TempDir(), c)
	j.conf.Overhead = 100 * mib
	made, err := j.Make(t.Context(), "sb_1", 2, 400*mib)
	cage := cageOf(t, made, err)
	want := map[string]string{
		"cpu.cfs_quota_us": "220000", "cpu.max": "220000 100000", "pids.max": "512",
		"memory.limit_in_bytes": "629145600", "memory.max": "629145600",
	}
	checked := 0
	for _, procs := range cage.Procs() {
		for name, value := range want {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(procs), name))
			if err != nil {
				continue // of the other version or hierarchy
			}
			if checked++; strings.TrimSpace(string(b)) != value {
				t.Errorf("%s is %s and not %s", name, b, value)
			}
		}
	}
	if checked != 3 {
		t.Errorf("%d limits were found and not 3", checked)
	}
	// A process that takes more is killed, and nobody else.
	_, ended := run(t, cage, "exec dd if=/dev/zero of=/dev/null bs=700M count=1")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended with %v", err)
	}
}

func TestIllegalCagesAreRefused(t *testing.T) {
	j := newJail(t, "", t.TempDir(), nil)
	for _, id := range []string{"", "../x", "a/b"} {
		if _, err := j.Make(t.Context(), id, 1, mib); err == nil {
			t.Errorf("%q was accepted", id)
		}
	}
	for _, c := range []Config{{}, {Owner: "a\nb"}, {Owner: "a", UIDBase: 10}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}
