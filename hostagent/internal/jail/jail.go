package jail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// Config describes a Jail.
type Config struct {
	// Owner names the agent, uniquely on its machine and the same after each restart; its state directory does.
	Owner string
	// Dir is where the agents of a machine keep records. Default /run/covey/jail.
	Dir string
	// UIDBase is the first of the user ids, UIDs how many there are. Default 10000 from 200000 on.
	UIDBase, UIDs int
	// Overhead is what a VMM may take beside its guest's memory, bytes. Default 1.5 GiB.
	Overhead int64
	Log      *slog.Logger
}

const (
	defaultDir      = "/run/covey/jail"
	defaultOverhead = 1536 << 20
	// vmmCPU is the share of a CPU for a VMM's own threads, thousandths.
	vmmCPU = 200
	// maxPids is the most threads of a VMM.
	maxPids = 512
	// top is the cgroup of all agents.
	top = "covey"
	// killTime bounds how long killed processes may take to end; tick is how often they are looked at, as a cgroup v1 tells nobody.
	killTime = 20 * time.Second
	tick     = 2 * time.Millisecond
)

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// Jail makes cages. It implements machine.Cages and is safe for concurrent use.
type Jail struct {
	conf        Config
	log         *slog.Logger
	controllers controllers // nil: users only
	group       string      // the agent's cgroup

	mu      sync.Mutex // guards records, and making and removing what cages share
	records records
}

var (
	_ machine.Cages = (*Jail)(nil)
	_ machine.Cage  = (*Cage)(nil)
)

// New prepares to make cages.
func New(conf Config) (*Jail, error) {
	if conf.Dir == "" {
		conf.Dir = defaultDir
	}
	if conf.UIDBase == 0 {
		conf.UIDBase = 200000
	}
	if conf.UIDs == 0 {
		conf.UIDs = 10000
	}
	if conf.Overhead == 0 {
		conf.Overhead = defaultOverhead
	}
	if conf.Owner == "" || strings.Contains(conf.Owner, "\n") || conf.UIDBase < 1000 || conf.UIDs < 1 {
		return nil, fmt.Errorf("jail: an owner must be named, UIDBase be at least 1000 and UIDs positive; got %q, %d and %d", conf.Owner, conf.UIDBase, conf.UIDs)
	}
	hash := sha256.Sum256([]byte(conf.Owner))
	j := &Jail{
		conf: conf, log: conf.Log, group: filepath.Join(top, hex.EncodeToString(hash[:4])),
		records: records{dir: conf.Dir, owner: conf.Owner, base: conf.UIDBase, count: conf.UIDs},
	}
	var err error
	if j.controllers, err = findControllers(); err == nil {
		err = j.tryControllers()
	}
	if err != nil {
		err = errors.Join(err, j.Close())
		j.controllers = nil
		j.log.Warn("VMMs are bounded by their users alone, as cgroups cannot be used", "error", err)
	}
	return j, nil
}

// tryControllers finds out whether cgroups can be made: in a container they are mostly there to be read.
func (j *Jail) tryControllers() error {
	name := filepath.Join(j.group, fmt.Sprintf("try-%d", os.Getpid()))
	err := j.set(name, limits{cpu: 1000, memory: 1 << 30, pids: maxPids})
	return errors.Join(err, j.removeDirs(context.Background(), j.controllers.dirs(name)))
}

// Make makes a cage for an id. What an earlier one of the id has is killed.
func (j *Jail) Make(ctx context.Context, id string, vcpus int, memoryBytes int64) (machine.Cage, error) {
	c, there, err := j.find(id)
	if err != nil {
		return nil, err
	}
	if there {
		if err := c.Remove(ctx); err != nil {
			return nil, err
		}
	}
	return j.make(ctx, id, vcpus, memoryBytes)
}

// Open finds the cage that a former agent of the owner has made, or makes it.
func (j *Jail) Open(ctx context.Context, id string, vcpus int, memoryBytes int64) (machine.Cage, error) {
	c, there, err := j.find(id)
	if err != nil {
		return nil, err
	}
	if !there {
		return j.make(ctx, id, vcpus, memoryBytes)
	}
	return c, j.limit(c, vcpus, memoryBytes)
}

func (j *Jail) find(id string) (c *Cage, there bool, err error) {
	if !validID.MatchString(id) {
		return nil, false, fmt.Errorf("jail: %q cannot name a cage", id)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	ours, _, err := j.records.find()
	if err != nil {
		return nil, false, fmt.Errorf("jail: %w", err)
	}
	uid, there := ours[id]
	return j.cage(id, uid), there, nil
}

func (j *Jail) cage(id string, uid int) *Cage {
	return &Cage{jail: j, id: id, uid: uid, name: filepath.Join(j.group, id)}
}

func (j *Jail) make(ctx context.Context, id string, vcpus int, memoryBytes int64) (machine.Cage, error) {
	j.mu.Lock()
	uid, err := j.records.take(id)
	j.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("jail: %w", err)
	}
	c := j.cage(id, uid)
	if err := j.limit(c, vcpus, memoryBytes); err != nil {
		return nil, errors.Join(err, c.Remove(ctx))
	}
	return c, nil
}

// limit makes the cage's cgroup, if need be, and sets its limits.
func (j *Jail) limit(c *Cage, vcpus int, memoryBytes int64) error {
	if j.controllers == nil {
		return nil
	}
	l := limits{cpu: int64(vcpus)*1000 + vmmCPU, memory: memoryBytes + memoryBytes/4 + j.conf.Overhead, pids: maxPids}
	if err := j.set(c.name, l); err != nil {
		return fmt.Errorf("jail: cgroup %s: %w", c.name, err)
	}
	return nil
}

// set makes a cgroup. Another agent that ends removes what all share as soon as it is empty, perhaps in between.
func (j *Jail) set(name string, l limits) (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for range 3 {
		if err = j.controllers.set(name, l); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// Sweep removes the cages of this owner's ids but those given, and kills what is in them. It tells what it removed.
func (j *Jail) Sweep(keepIDs []string) (removed []string, err error) {
	j.mu.Lock()
	ours, _, err := j.records.find()
	j.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("jail: %w", err)
	}
	// Cgroups without a record: their agent was killed in between.
	for _, id := range j.groups() {
		if _, there := ours[id]; !there {
			ours[id] = 0
		}
	}
	for id, uid := range ours {
		if slices.Contains(keepIDs, id) {
			continue
		}
		if e := j.cage(id, uid).Remove(context.Background()); e != nil {
			err = errors.Join(err, e)
			continue
		}
		removed = append(removed, id)
	}
	slices.Sort(removed)
	return removed, err
}

// groups lists the ids that have a cgroup.
func (j *Jail) groups() (ids []string) {
	if j.controllers == nil {
		return nil
	}
	for _, dir := range j.controllers.dirs(j.group) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(ids, e.Name()) {
				ids = append(ids, e.Name())
			}
		}
	}
	return ids
}

// Close removes what the cages of this agent share, if there are none.
func (j *Jail) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	dirs := []string{j.conf.Dir, filepath.Dir(j.conf.Dir)}
	if j.controllers != nil {
		dirs = slices.Concat(j.controllers.dirs(j.group), j.controllers.dirs(top), dirs)
	}
	for _, dir := range dirs {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("jail: %w", err)
		}
	}
	return nil
}

// removeDirs removes cgroups, as soon as what was in them has ended.
func (j *Jail) removeDirs(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		err := poll(ctx, func() (bool, error) {
			err := os.Remove(dir)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return !errors.Is(err, unix.EBUSY), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// poll calls f until it is done or ctx ends.
func poll(ctx context.Context, f func() (done bool, err error)) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		done, err := f()
		if done {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}
