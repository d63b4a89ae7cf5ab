package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// Store is what this host has; *snapstore.Store is one.
type Store interface {
	Local() []string
	Has(id string) bool
	Record(id string) (*snapstore.Record, error)
	Export(id string) (*snapstore.Export, error)
	OpenObject(key string) (*snapstore.ObjectFile, error)
	Remove(ctx context.Context, id string) error
}

// Config is what a Transfer needs.
type Config struct {
	HostID string
	// Dir is a directory of its own.
	Dir string
	// Registry is a connection to the snapshot registry.
	Registry grpc.ClientConnInterface
	// Peers finds other hosts; nil means that there are none.
	Peers Peers
	// Uploads is how many objects are uploaded at once. Default 4.
	Uploads int
	// Report is how often the registry is told what this host has. Default 1m.
	Report time.Duration
	// Patience is how long bytes that a VM waits for are asked for where nobody can be reached. Default 2m.
	Patience time.Duration
	// Turn is how long it is waited for a peer that may have to fetch a range first. Then others are asked, and the registry. Default 1s.
	Turn time.Duration
	// Meter may be nil.
	Meter metric.Meter
	Log   *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Uploads == 0 {
		c.Uploads = 4
	}
	if c.Report == 0 {
		c.Report = time.Minute
	}
	if c.Turn == 0 {
		c.Turn = time.Second
	}
	if c.Patience == 0 {
		c.Patience = 2 * time.Minute
	}
}

// Transfer uploads this host's snapshots. It implements machine.Registry. Attach and then Run must be called.
type Transfer struct {
	conf     Config
	log      *slog.Logger
	registry snapshotv1.RegistryServiceClient
	marks    *marks
	queue    *queue
	fetcher  *Fetcher
	metrics  *metrics
	streams  chan struct{} // places of uploads of objects
	report   chan struct{} // asks for a report; holds at most one
	store    Store

	// leasing is held while a lease is taken or released, so that none is released that was just taken.
	leasing sync.Mutex
	mu      sync.Mutex      // guards left and coming
	left    map[string]bool // perhaps not on this host any more, and marked still
	coming  map[string]int  // how many are fetching it
}

var _ machine.Registry = (*Transfer)(nil)

// New makes a Transfer that has no store yet.
func New(c Config) (*Transfer, error) {
	c.setDefaults()
	t := &Transfer{
		conf: c, log: c.Log, registry: snapshotv1.NewRegistryServiceClient(c.Registry), queue: newQueue(),
		streams: make(chan struct{}, c.Uploads), report: make(chan struct{}, 1), left: map[string]bool{}, coming: map[string]int{},
	}
	var err error
	if t.marks, err = openMarks(filepath.Join(c.Dir, "marks")); err != nil {
		return nil, err
	}
	if t.metrics, err = newMetrics(c.Meter, t.queue.len, t.queue.lenRefused, t.queue.lenDamaged); err != nil {
		return nil, err
	}
	t.fetcher = newFetcher(t)
	return t, nil
}

// Fetcher reads what is elsewhere, for the store.
func (t *Transfer) Fetcher() *Fetcher { return t.fetcher }

// Attach says what this host has. It is called once, before Run and Register.
func (t *Transfer) Attach(s Store) { t.store = s }

// Pending is how many snapshots of this host are not durable yet.
func (t *Transfer) Pending() int { return t.queue.len() }

// registerTime bounds a registration that a caller waits for.
const registerTime = 10 * time.Second

// Register implements machine.Registry. Where the registry is out of reach the error says so, and it is tried again in the background as
// long as the snapshot is here. One that the registry refuses is not uploaded, and its maker removes it; except a paused sandbox's, which
// is all that there is of it: that is tried again too.
func (t *Transfer) Register(ctx context.Context, m machine.Manifest) error {
	ctx, cancel := context.WithTimeout(ctx, registerTime)
	defer cancel()
	r, err := t.store.Record(m.ID)
	if err != nil {
		return err
	}
	state, err := t.register(ctx, r)
	if refused(err) || gone(err) {
		if m.Kind == machine.PauseSnapshot {
			t.keepTrying(m.ID, err)
		}
		return err
	}
	if err == nil && state == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE {
		return t.done(m.ID)
	}
	t.queue.add(m.ID, err == nil)
	return err
}

// keepTrying queues a paused sandbox's snapshot that the registry does not take now. One that was deleted is looked at again at once, and
// removed then.
func (t *Transfer) keepTrying(id string, cause error) {
	t.queue.add(id, false)
	if refused(cause) {
		t.metrics.uploaded(context.Background(), cause)
		t.log.Warn("the registry refuses a paused sandbox's snapshot, which stays on this host alone", "snapshot_id", id, "error", cause,
			"again_in", t.queue.refused(id))
	}
}

// register tells the registry of a snapshot.
func (t *Transfer) register(ctx context.Context, r *snapstore.Record) (snapshotv1.SnapshotState, error) {
	resp, err := t.registry.RegisterSnapshot(ctx, toRegistration(r, t.conf.HostID))
	if err == nil {
		t.queue.registered(r.Manifest.ID)
	}
	return resp.GetSnapshot().GetState(), err
}

// refused tells an answer that trying again will not change soon.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.AlreadyExists, codes.InvalidArgument, codes.ResourceExhausted, codes.PermissionDenied, codes.Unimplemented:
		return true
	}
	return false
}

// gone tells that the registry says that the snapshot was deleted.
func gone(err error) bool { return apierr.Reason(err) == "SNAPSHOT_NOT_FOUND" }

// Run uploads and reports until ctx ends.
func (t *Transfer) Run(ctx context.Context) {
	t.scan()
	var wg sync.WaitGroup
	wg.Go(func() { t.reports(ctx) })
	t.uploads(ctx)
	wg.Wait()
}

// scan finds the snapshots that no one has brought to the registry.
func (t *Transfer) scan() {
	for _, id := range t.store.Local() {
		if t.marks.get(id) != "" || t.queue.has(id) {
			continue
		}
		r, err := t.store.Record(id)
		if err != nil {
			t.log.Warn("a snapshot's record cannot be read; it is not uploaded", "snapshot_id", id, "error", err)
			continue
		}
		// First-boot snapshots of images are each host's own; what others name of them goes with those.
		if r.Manifest.Kind != machine.ImageSnapshot {
			t.queue.add(id, false)
		}
	}
}

// snapshotsAtOnce bounds how many snapshots are uploaded at the same time; their objects share the places of Config.Uploads.
const snapshotsAtOnce = 4

// uploads works off the queue.
func (t *Transfer) uploads(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, snapshotsAtOnce)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		id := t.next(ctx)
		if id == "" {
			return
		}
		wg.Go(func() {
			defer func() { <-places }()
			t.try(ctx, id)
		})
	}
}

// next waits for a snapshot that is due; "" when ctx ends.
func (t *Transfer) next(ctx context.Context) string {
	for {
		id, wait := t.queue.take()
		if id != "" {
			return id
		}
		due := make(<-chan time.Time)
		if wait >= 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			due = timer.C
		}
		select {
		case <-t.queue.wake:
		case <-due:
		case <-ctx.Done():
			return ""
		}
	}
}

// try uploads a snapshot once and decides what becomes of it then.
func (t *Transfer) try(ctx context.Context, id string) {
	log := t.log.With("snapshot_id", id)
	began := time.Now()
	err := t.upload(ctx, id)
	if ctx.Err() != nil {
		t.queue.later(id)
		return
	}
	t.metrics.uploaded(ctx, err)
	var d *damage
	switch {
	case errors.As(err, &d) && d.final:
		// Told once: it is looked at again now and then, for another host may have come back.
		if again, known := t.queue.damaged(id, d); !known {
			log.Error("a snapshot is damaged on this host and nobody else has it whole; it is not uploaded", "key", d.object.Key, "error", err, "again_in", again)
		}
	case err == nil:
		if err := t.done(id); err != nil {
			log.Warn("a durable snapshot is not marked; the next agent will look at it again", "error", err)
		}
		log.Info("snapshot is durable", "took", time.Since(began))
	case errors.Is(err, machine.ErrSnapshotNotFound):
		log.Info("snapshot was removed from this host before it was uploaded")
		t.queue.remove(id)
	case gone(err):
		log.Info("snapshot was deleted and is removed from this host")
		t.removeLocal(ctx, id)
	case refused(err):
		log.Warn("the registry refuses a snapshot", "error", err, "again_in", t.queue.refused(id))
	default:
		log.Info("snapshot is not uploaded yet", "error", err, "again_in", t.queue.later(id))
	}
}

// done marks a snapshot as durable and takes it off the queue.
func (t *Transfer) done(id string) error {
	err := t.marks.set(id, durable)
	t.queue.remove(id)
	t.wantReport()
	return err
}

func (t *Transfer) removeLocal(ctx context.Context, id string) {
	if err := t.store.Remove(ctx, id); err != nil {
		t.log.Warn("a deleted snapshot cannot be removed from this host; will be tried again", "snapshot_id", id, "error", err, "again_in", t.queue.later(id))
		return
	}
	t.queue.remove(id)
}

// describe adds what a snapshot's upload was about to do.
func describe(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
