package server

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coveyhq/covey/guest/internal/freeze"
	"github.com/coveyhq/covey/guest/internal/identity"
	"github.com/coveyhq/covey/guest/internal/lease"
	"github.com/coveyhq/covey/guest/internal/process"
	"github.com/coveyhq/covey/guest/internal/usage"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// Version is guestd's.
const Version = "1"

// guestService serves covey.guest.v1.GuestService.
type guestService struct {
	guestv1.UnimplementedGuestServiceServer
	table   *process.Table
	clients *clients
	leases  *lease.Keeper
	root    *freeze.Filesystem
	usage   usage.Reader
	guest   *identity.Guest
	// memory keeps the identity while guestd itself is started again.
	memory *os.File
	// shutdown ends the VM.
	shutdown func() error
	// kernel and bootID do not change while guestd runs.
	kernel, bootID string

	mu       sync.Mutex
	last     *guestv1.AfterRestoreRequest  // without its entropy; guarded by mu
	answered *guestv1.AfterRestoreResponse // the answer to it; guarded by mu
}

func (s *guestService) Health(context.Context, *guestv1.HealthRequest) (*guestv1.HealthResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &guestv1.HealthResponse{Version: Version, Kernel: s.kernel, UptimeSec: usage.Uptime().Seconds(), SandboxId: s.last.GetSandboxId()}, nil
}

func (s *guestService) GetMetrics(context.Context, *guestv1.GetMetricsRequest) (*guestv1.GetMetricsResponse, error) {
	u, err := s.usage.Read()
	if err != nil {
		return nil, mapped(err)
	}
	return &guestv1.GetMetricsResponse{
		ReadUnixMs: time.Now().UnixMilli(), Vcpus: uint32(u.VCPUs), CpuBusyUsec: u.CPUBusy.Microseconds(), MemoryTotalBytes: u.MemoryTotal,
		MemoryAvailableBytes: u.MemoryAvailable, DiskTotalBytes: u.DiskTotal, DiskAvailableBytes: u.DiskAvailable, Load1: u.Load1,
		Processes: uint32(u.Processes), OomKills: u.OOMKills, NetRxBytes: u.NetRx, NetTxBytes: u.NetTx,
		KeepAliveHolders: uint32(s.table.KeepAlive() + s.leases.Held()),
	}, nil
}

// defaultFrozen is how long Quiesce freezes at most unless it is told.
const defaultFrozen = 10 * time.Second

func (s *guestService) Quiesce(ctx context.Context, r *guestv1.QuiesceRequest) (*guestv1.QuiesceResponse, error) {
	limit := time.Duration(r.GetMaxFrozenMs()) * time.Millisecond
	if limit == 0 {
		limit = defaultFrozen
	}
	err := error(nil)
	if r.GetSyncOnly() {
		err = s.root.Sync()
	} else {
		err = s.root.Freeze(ctx, limit)
	}
	if err != nil {
		return nil, mapped(err)
	}
	s.clients.snapshotAhead()
	return &guestv1.QuiesceResponse{}, nil
}

func (s *guestService) Thaw(context.Context, *guestv1.ThawRequest) (*guestv1.ThawResponse, error) {
	if err := s.root.Thaw(); err != nil {
		return nil, mapped(err)
	}
	return &guestv1.ThawResponse{}, nil
}

func (s *guestService) AfterRestore(ctx context.Context, r *guestv1.AfterRestoreRequest) (*guestv1.AfterRestoreResponse, error) {
	if r.GetRestoreId() == "" {
		return nil, field("restore_id", "must name the restore, is empty")
	}
	id := &identity.Identity{Now: time.Unix(0, r.GetNowUnixNs()), Entropy: r.GetEntropy(), Hostname: r.GetHostname(), MachineID: r.GetMachineId(),
		Nameservers: r.GetNameservers()}
	if err := id.Validate(); err != nil {
		return nil, mapped(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.GetRestoreId() == r.GetRestoreId() && s.answered != nil {
		return s.answered, nil
	}
	step, err := s.guest.SetClockAndEntropy(id)
	if err != nil {
		return nil, mapped(err)
	}
	ended := s.clients.restored(peerOf(ctx))
	if err := s.root.Thaw(); err != nil {
		return nil, mapped(err)
	}
	a, err := s.guest.SetNames(id)
	if err != nil {
		return nil, mapped(err)
	}
	s.table.SetEnv(r.GetEnv())
	r.Entropy = nil
	s.last, s.answered = r, &guestv1.AfterRestoreResponse{
		ClockStepNs: int64(step), EntropyReseeded: true, MachineId: a.MachineID, Hostname: a.Hostname, StreamsEnded: uint32(ended), BootId: s.bootID,
	}
	return s.answered, mapped(s.remember(r))
}

// remember keeps the identity in memory outside this process.
func (s *guestService) remember(r *guestv1.AfterRestoreRequest) error {
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return identity.Overwrite(s.memory, b)
}

// recall finds the identity that a former guestd was given.
func (s *guestService) recall() error {
	b, err := io.ReadAll(s.memory)
	if err != nil || len(b) == 0 {
		return err
	}
	r := &guestv1.AfterRestoreRequest{}
	if err := proto.Unmarshal(b, r); err != nil {
		return fmt.Errorf("%s: %w", s.memory.Name(), err)
	}
	s.table.SetEnv(r.GetEnv())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
	return nil
}

func (s *guestService) Shutdown(context.Context, *guestv1.ShutdownRequest) (*guestv1.ShutdownResponse, error) {
	if err := s.root.Thaw(); err != nil {
		return nil, mapped(err)
	}
	if err := s.root.Sync(); err != nil {
		return nil, mapped(err)
	}
	if err := s.shutdown(); err != nil {
		return nil, mapped(err)
	}
	return &guestv1.ShutdownResponse{}, nil
}
