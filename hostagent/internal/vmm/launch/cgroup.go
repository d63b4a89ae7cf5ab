package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// enterCgroups puts the thread in the cgroups of version 1, which its children inherit, and returns the directory of that of
// version 2, which clone is told: there a thread cannot leave its process.
func enterCgroups(files []string) (v2 *os.File, err error) {
	for _, path := range files {
		dir := filepath.Dir(path)
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", dir, err)
		}
		switch {
		case fs.Type == unix.CGROUP2_SUPER_MAGIC && v2 != nil:
			return nil, fmt.Errorf("cgroup %s: a process is in one cgroup of version 2 only", dir)
		case fs.Type == unix.CGROUP2_SUPER_MAGIC:
			if v2, err = os.Open(dir); err != nil {
				return nil, err
			}
		default:
			// Not cgroup.procs: that would move the agent with all of its threads.
			if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
				return nil, fmt.Errorf("enter cgroup: %w", err)
			}
		}
	}
	return v2, nil
}
