package mesh

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is cached is named "<kind>-<hash of its recipe>": a change of a recipe makes a new one, and the old one is of no use but to an older
// checkout. Of each kind the cache keeps those that were used last.
const (
	keepCached = 3
	// keepUsed is how long one is kept in any case: another checkout's mesh may run on it.
	keepUsed = 24 * time.Hour
)

// pruneCache notes that some of what is in the cache is in use, and removes what was not used for long, except the newest of each kind. It
// returns the names of what it removed.
func pruneCache(cache string, inUse []string, now time.Time) (removed []string, err error) {
	for _, path := range inUse {
		// The time of change stays: by it hosts see that an image is the one that they know.
		times := []unix.Timespec{unix.NsecToTimespec(now.UnixNano()), {Nsec: unix.UTIME_OMIT}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	kinds := map[string][]cached{}
	for _, dir := range []string{cache, filepath.Join(cache, "guest")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			kind := cachedKind(e.Name())
			info, err := e.Info()
			if kind == "" || err != nil {
				continue // Not ours, or gone meanwhile.
			}
			kinds[kind] = append(kinds[kind], cached{filepath.Join(dir, e.Name()), lastUse(info)})
		}
	}
	for _, list := range kinds {
		slices.SortFunc(list, func(a, b cached) int { return b.used.Compare(a.used) })
		for _, c := range list[min(keepCached, len(list)):] {
			if now.Sub(c.used) < keepUsed || slices.Contains(inUse, c.path) {
				continue
			}
			if e := os.RemoveAll(c.path); e != nil {
				err = errors.Join(err, e)
				continue
			}
			removed = append(removed, filepath.Base(c.path))
		}
	}
	return removed, err
}

// cached is something in the cache.
type cached struct {
	path string
	used time.Time
}

// cachedKind is what something in the cache is one of; empty for what is not named like that. A kernel's name ends with its version.
func cachedKind(name string) string {
	for _, kind := range []string{"consul-", "schemathesis-", "kernel-", "initramfs-"} {
		if strings.HasPrefix(name, kind) {
			return kind
		}
	}
	if at := strings.LastIndexByte(name, '-'); strings.HasPrefix(name, "image-") && at > len("image-") {
		return name[:at]
	}
	return ""
}

func lastUse(info os.FileInfo) time.Time {
	used := info.ModTime()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if read := time.Unix(st.Atim.Unix()); read.After(used) {
			used = read
		}
	}
	return used
}

// prune removes what other checkouts have left in the cache long ago.
func (t *Toolchain) prune(p *Progress) error {
	return p.Run("cache", func(func(string)) (string, error) {
		inUse := []string{filepath.Dir(t.Consul)}
		for _, pattern := range []string{"*", "images/*"} {
			links, err := filepath.Glob(filepath.Join(t.Artifacts, pattern))
			if err != nil {
				return "", err
			}
			for _, link := range links {
				path, err := filepath.EvalSymlinks(link)
				if err != nil {
					return "", err
				}
				if strings.HasPrefix(filepath.Base(filepath.Dir(path)), "kernel-") {
					path = filepath.Dir(path)
				}
				if strings.HasPrefix(path, CacheDir()+"/") {
					inUse = append(inUse, path)
				}
			}
		}
		removed, err := pruneCache(CacheDir(), inUse, time.Now())
		if len(removed) == 0 {
			return "nothing to remove", err
		}
		return "removed what was not used for long: " + strings.Join(removed, ", "), err
	})
}
