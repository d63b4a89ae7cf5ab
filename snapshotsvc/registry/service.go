package registry

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// maxNamedBy bounds how many snapshots an explanation names for a build.
const maxNamedBy = 100

// Config is what a Service needs.
type Config struct {
	Index Index
	Store Store
	Log   *slog.Logger
	// Quota is that of tenants that Quotas does not name.
	Quota  Quota
	Quotas map[string]Quota
	// Collect is how often garbage is collected, beside after each deletion. Default 30s.
	Collect time.Duration
	// Sweep is how often the store is searched for bytes that nothing knows of. Default 1h.
	Sweep time.Duration
}

// Service is the registry. Its methods are safe for concurrent use; Run must be running for garbage to go.
//
// In methods of users tenant is never empty; in those of hosts the empty tenant means that any is meant.
type Service struct {
	index   Index
	store   Store
	log     *slog.Logger
	conf    Config
	garbage chan struct{} // wakes the collector; holds at most one wake-up

	mu sync.Mutex // guards uploads
	// uploads are those under way, by path, one of each.
	uploads map[string]*Upload
}

// New makes a registry.
func New(c Config) *Service {
	if c.Collect == 0 {
		c.Collect = 30 * time.Second
	}
	if c.Sweep == 0 {
		c.Sweep = time.Hour
	}
	return &Service{index: c.Index, store: c.Store, log: c.Log, conf: c, garbage: make(chan struct{}, 1), uploads: map[string]*Upload{}}
}

// Get reads a snapshot of the tenant by id or name.
func (s *Service) Get(ctx context.Context, tenant, ref string) (Snapshot, error) {
	if err := checkRef("snapshot_id", ref); err != nil {
		return Snapshot{}, err
	}
	return s.index.Find(ctx, tenant, ref)
}

// Rename gives a template another name.
func (s *Service) Rename(ctx context.Context, tenant, ref, name string) (Snapshot, error) {
	if err := checkRef("snapshot_id", ref); err != nil {
		return Snapshot{}, err
	}
	if err := checkName("name", name); err != nil {
		return Snapshot{}, err
	}
	snap, err := s.index.Find(ctx, tenant, ref)
	if err != nil {
		return Snapshot{}, err
	}
	if snap.Kind != Template {
		return Snapshot{}, &Error{
			Kind: Precondition, Reason: "NOT_A_TEMPLATE", Message: fmt.Sprintf("snapshot %s is of kind %s; only templates have names", snap.ID, snap.Kind),
			Meta: map[string]string{"snapshot_id": snap.ID},
		}
	}
	return s.index.Rename(ctx, tenant, snap.ID, name)
}

// Delete deletes a snapshot that nothing needs; else the error says what does.
func (s *Service) Delete(ctx context.Context, tenant, ref string) (Snapshot, error) {
	if err := checkRef("snapshot_id", ref); err != nil {
		return Snapshot{}, err
	}
	snap, err := s.index.Delete(ctx, tenant, ref, func(snap Snapshot, leases []Lease) error {
		if why := pins(snap, leases); len(why) > 0 {
			return &Error{
				Kind: Precondition, Reason: "SNAPSHOT_IN_USE", Message: fmt.Sprintf("snapshot %s cannot be deleted: %s", snap.ID, clipList(why)),
				Meta: map[string]string{"snapshot_id": snap.ID},
			}
		}
		return nil
	})
	if err != nil {
		return Snapshot{}, err
	}
	s.wakeCollector()
	s.log.InfoContext(ctx, "snapshot deleted", "snapshot_id", snap.ID, "tenant_id", snap.Tenant, "name", snap.Name)
	snap.State = Deleting
	return snap, nil
}

// Explain says what a snapshot consists of and what pins it and each of its builds.
func (s *Service) Explain(ctx context.Context, tenant, ref string) (e Explanation, err error) {
	if e.Snapshot, err = s.Get(ctx, tenant, ref); err != nil {
		return e, err
	}
	id := e.Snapshot.ID
	if e.Builds, err = s.index.Builds(ctx, tenant, id, maxNamedBy); err != nil {
		return e, err
	}
	leases, err := s.index.Leases(ctx, id)
	if err != nil {
		return e, err
	}
	e.PinnedBy = pins(e.Snapshot, leases)
	e.Lineage, err = s.index.Lineage(ctx, tenant, id)
	return e, err
}

// Usage is what the tenant's snapshots take.
func (s *Service) Usage(ctx context.Context, tenant string) (Usage, error) {
	if tenant == "" {
		return Usage{}, Field("tenant_id", "is required")
	}
	return s.index.Usage(ctx, tenant)
}

// pins says, a sentence each, what keeps a snapshot from being deleted by its user. What a host has open is no reason: the
// snapshot then is retired, and goes when the host lets go of it.
func pins(snap Snapshot, leases []Lease) []string {
	var why []string
	source := snap.Manifest.SourceSandboxID
	switch snap.Kind {
	case Pause:
		why = append(why, fmt.Sprintf("it is saved state of sandbox %s; delete the sandbox instead", source))
	case Fork:
		why = append(why, fmt.Sprintf("copies of sandbox %s were made from it; it goes with the last of them", source))
	}
	for _, l := range leases {
		kind, id, _ := strings.Cut(l.Holder, "/")
		if kind == hostHolder {
			continue
		}
		end := ""
		if !l.Until.IsZero() {
			end = ", until " + l.Until.UTC().Format(time.RFC3339)
		}
		if kind == "sandbox" {
			why = append(why, fmt.Sprintf("sandbox %s was made from it and may still read it%s", id, end))
		} else {
			why = append(why, fmt.Sprintf("%s holds a lease%s", l.Holder, end))
		}
	}
	return why
}

// hostHolder begins the holders of hosts' leases, "host/<host id>".
const hostHolder = "host"

// clipList joins sentences, the first few of many.
func clipList(why []string) string {
	const most = 10
	if len(why) > most {
		why = append(why[:most:most], fmt.Sprintf("and %d more", len(why)-most))
	}
	return strings.Join(why, "; ")
}
