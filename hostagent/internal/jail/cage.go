package jail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Cage is the cgroup and the user of one VMM. It implements machine.Cage.
type Cage struct {
	jail *Jail
	id   string
	uid  int
	name string // of the cgroup

	removed atomic.Bool
}

// UID is the user that the VMM runs as; no other cage of the machine has it.
func (c *Cage) UID() int { return c.uid }

// GID is the group, which has the same number.
func (c *Cage) GID() int { return c.uid }

// Procs are the files that the VMM's pid is written to; none where there are no controllers.
func (c *Cage) Procs() (files []string) {
	if c.jail.controllers == nil {
		return nil
	}
	for _, dir := range c.jail.controllers.dirs(c.name) {
		files = append(files, filepath.Join(dir, procsFile))
	}
	return files
}

// CPUTime is what its processes have used; without controllers, those that still run.
func (c *Cage) CPUTime() (time.Duration, error) {
	if c.jail.controllers != nil {
		return c.jail.controllers.cpuTime(c.name)
	}
	pids, err := processesOf(c.uid)
	var sum time.Duration
	for _, pid := range pids {
		sum += cpuTimeOf(pid)
	}
	return sum, err
}

// Wanted is, by thread id, how long each of its threads has run or has waited for a CPU to run on. A kernel without CONFIG_SCHED_INFO
// does not tell, and it is empty.
func (c *Cage) Wanted() (map[int]time.Duration, error) {
	pids, err := c.processes()
	if err != nil {
		return nil, err
	}
	all := map[int]time.Duration{}
	for _, pid := range pids {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			var ran, waited int64
			b, err := os.ReadFile(file)
			if err != nil {
				continue // It has ended.
			}
			if _, err := fmt.Sscan(string(b), &ran, &waited); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			tid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				return nil, err
			}
			all[tid] = time.Duration(ran + waited)
		}
	}
	return all, nil
}

// processes are those in the cage.
func (c *Cage) processes() ([]int, error) {
	if c.jail.controllers != nil {
		return processes(c.jail.controllers.dirs(c.name))
	}
	return processesOf(c.uid)
}

// Remove kills whatever is still in it and removes it. The second time it does nothing.
func (c *Cage) Remove(ctx context.Context) error {
	if c.removed.Load() {
		return nil // the user may be another's by now
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	err := poll(ctx, c.kill)
	if err == nil && c.jail.controllers != nil {
		err = c.jail.removeDirs(ctx, c.jail.controllers.dirs(c.name))
	}
	if err == nil && c.uid != 0 {
		c.jail.mu.Lock()
		err = c.jail.records.drop(c.id, c.uid)
		c.jail.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("jail: cage of %s: %w", c.id, err)
	}
	c.removed.Store(true)
	return nil
}

// kill kills what is in the cage, and tells whether nothing is.
func (c *Cage) kill() (empty bool, err error) {
	pids, err := c.processes()
	for _, pid := range pids {
		if pid == os.Getpid() {
			// A thread of the agent stands in the cgroup for a moment while it launches a VMM there.
			continue
		}
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && e != unix.ESRCH {
			err = errors.Join(err, fmt.Errorf("killing %d: %w", pid, e))
		}
	}
	return len(pids) == 0 || err != nil, err
}

// processesOf lists the processes of a user, without those that have ended and wait for their parents.
func processesOf(uid int) (pids []int, err error) {
	if uid == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("\nUid:\t%d\t", uid)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if s := string(status); strings.Contains(s, want) && !strings.Contains(s, "\nState:\tZ") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// cpuTimeOf is what a process has used; 0 where it has ended.
func cpuTimeOf(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in brackets may have spaces and brackets of its own; what follows the last one has not.
	_, rest, _ := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), ")")
	fields := strings.Fields(rest)
	const user, system, perSecond = 11, 12, 100 // fields 14 and 15 of the file, in USER_HZ
	if len(fields) <= system {
		return 0
	}
	u, _ := strconv.ParseInt(fields[user], 10, 64)
	s, _ := strconv.ParseInt(fields[system], 10, 64)
	return time.Duration(u+s) * time.Second / perSecond
}
