package pager

import (
	"fmt"
	"os"
)

// DirtyPagesSlowly is DirtyPages as on kernels without PAGEMAP_SCAN.
func DirtyPagesSlowly(pid int, addr, size uint64, fn func(off, length int64) error) error {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	return scanSlowly(pagemap, addr, size, dirty, fn)
}

// CheckRegions is what a handshake's regions have to pass.
var CheckRegions = checkRegions
