package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheCacheKeepsWhatWasUsedLastOfEachKindAndWhatIsInUse(t *testing.T) {
	cache := t.TempDir()
	now := time.Now()
	put := func(name string, daysAgo int) string {
		path := filepath.Join(cache, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		at := now.Add(-time.Duration(daysAgo) * 24 * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for i := range 6 {
		for _, kind := range []string{"consul", "guest/initramfs", "guest/image-base", "guest/image-tiny"} {
			put(fmt.Sprintf("%s-%d", kind, i), i+2)
		}
	}
	put("tools", 100)
	put("consul-9-today", 0)
	used := put("guest/image-base-old", 50)
	inUse := []string{used}
	before := modTime(t, used)
	for _, want := range []int{14, 0} { // The second time there is nothing left to do.
		removed, err := pruneCache(cache, inUse, now)
		if err != nil {
			t.Fatal(err)
		}
		if len(removed) != want {
			slices.Sort(removed)
			t.Errorf("removed %d: %v, want %d", len(removed), removed, want)
		}
	}
	for _, name := range []string{"tools", "consul-9-today", "consul-0", "consul-1", "guest/image-base-old", "guest/image-base-0", "guest/image-base-1", "guest/image-tiny-2", "guest/initramfs-2"} {
		if _, err := os.Stat(filepath.Join(cache, name)); err != nil {
			t.Error(err)
		}
	}
	if now := modTime(t, used); now != before {
		t.Errorf("its time of change was %v, is %v", before, now)
	}
}

func modTime(t *testing.T, path string) unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mtim
}
