package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// Usage is what a sandbox uses.
type Usage struct {
	// CPU is the time of the VMM.
	CPU time.Duration
	// Private is guest memory that only this VM has, bytes; PSS the proportional share of all memory of the VMM.
	Private, PSS int64
	// Overlay is what the disk's overlay takes, bytes.
	Overlay int64
	// Guest is what guestd tells; zero where it does not answer.
	Guest GuestMetrics
}

// Usage reads what a running sandbox uses. Asking is not using: the inactivity timer goes on.
func (m *Machine) Usage(ctx context.Context) (u Usage, err error) {
	m.mu.Lock()
	hold := m.hold
	if m.status.State != Running || hold == nil {
		defer m.mu.Unlock()
		return u, m.illegal("measure", Running)
	}
	m.mu.Unlock()
	var errs [4]error
	u.CPU, errs[0] = hold.cage.CPUTime()
	u.Private, errs[1] = hold.vm.PrivateBytes()
	u.PSS, errs[2] = pss(hold.vm.Handle().PID)
	u.Overlay, errs[3] = hold.disk.OverlayBytes()
	if err := errors.Join(errs[:]...); err != nil {
		if errors.Is(err, vmm.ErrGone) || errors.Is(err, os.ErrNotExist) {
			return u, fmt.Errorf("sandbox %s: %w", m.spec.ID, ErrVMDied)
		}
		return u, fmt.Errorf("usage of sandbox %s: %w", m.spec.ID, err)
	}
	ask, cancel := context.WithTimeout(ctx, metricsTime)
	defer cancel()
	if u.Guest, err = hold.guest.Metrics(ask); err != nil {
		m.log.Info("guest does not tell its metrics", "error", err)
	}
	return u, ctx.Err()
}

// pss reads a process's proportional share of memory, bytes.
func pss(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no Pss in smaps_rollup", pid)
}
