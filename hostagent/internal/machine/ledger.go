package machine

import (
	"fmt"
	"sync"
)

// Room is an amount of what sandboxes need of a host.
type Room struct {
	VCPUs int `json:"vcpus"`
	// MemoryMB and DiskMB are MiB.
	MemoryMB int64 `json:"memory_mb"`
	DiskMB   int64 `json:"disk_mb"`
	// Slots are network slots: sandboxes.
	Slots int `json:"slots"`
}

func (r Room) String() string {
	return fmt.Sprintf("%d vCPUs, %d MiB memory, %d MiB disk, %d slots", r.VCPUs, r.MemoryMB, r.DiskMB, r.Slots)
}

func (r Room) plus(o Room) Room {
	return Room{r.VCPUs + o.VCPUs, r.MemoryMB + o.MemoryMB, r.DiskMB + o.DiskMB, r.Slots + o.Slots}
}

func (r Room) minus(o Room) Room {
	return Room{r.VCPUs - o.VCPUs, r.MemoryMB - o.MemoryMB, r.DiskMB - o.DiskMB, r.Slots - o.Slots}
}

// Ledger is the host's last word on what fits: room is taken whole or not at all.
type Ledger struct {
	capacity Room
	mu       sync.Mutex // guards used
	used     Room
}

// NewLedger offers a capacity; overcommit of vCPUs is already in it.
func NewLedger(capacity Room) *Ledger { return &Ledger{capacity: capacity} }

// Take takes room for all of the specs together, or answers *ExhaustedError and takes nothing.
func (l *Ledger) Take(r Room) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	free := l.capacity.minus(l.used)
	var lacking []string
	for _, need := range []struct {
		name        string
		asked, free int64
	}{
		{"vCPUs", int64(r.VCPUs), int64(free.VCPUs)},
		{"memory", r.MemoryMB, free.MemoryMB},
		{"disk", r.DiskMB, free.DiskMB},
		{"slots", int64(r.Slots), int64(free.Slots)},
	} {
		if need.asked > need.free {
			lacking = append(lacking, need.name)
		}
	}
	if len(lacking) > 0 {
		return &ExhaustedError{Lacking: lacking, Asked: r, Free: free}
	}
	l.used = l.used.plus(r)
	return nil
}

// Force takes room that is already in use: of a VM that a former agent had started.
func (l *Ledger) Force(r Room) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = l.used.plus(r)
}

// Give gives room back.
func (l *Ledger) Give(r Room) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used = l.used.minus(r)
}

// Capacity is what the host offers in all; Used is what is taken of it.
func (l *Ledger) Capacity() Room { return l.capacity }

// Used is what is taken now.
func (l *Ledger) Used() Room {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}
