package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// Where bytes come from.
const (
	fromPeer     = "peer"
	fromRegistry = "registry"
)

const (
	// placesTime is how long it is believed which hosts have a snapshot.
	placesTime = 15 * time.Second
	// stallTime is how long a stream may send nothing.
	stallTime = 5 * time.Second
	// maxPeers is how many peers are asked for one range.
	maxPeers = 3
	// Pauses between rounds in which nobody had a range.
	firstRound = 50 * time.Millisecond
	lastRound  = 2 * time.Second
)

// Fetcher implements snapstore.Fetcher.
type Fetcher struct {
	t      *Transfer
	health *health

	mu     sync.Mutex // guards all below
	places map[string]*place
	// asking are the snapshots whose places are being asked for; closed when it is known, or cannot be.
	asking map[string]chan struct{}
}

var _ snapstore.Fetcher = (*Fetcher)(nil)

// place is where a snapshot's objects are. It is never changed.
type place struct {
	// maker made the snapshot, so it has or had all of it; the other hosts may have parts.
	maker string
	hosts []string
	// renamed are objects that the registry knows by another key.
	renamed map[string]string
	at      time.Time
}

func newFetcher(t *Transfer) *Fetcher {
	return &Fetcher{t: t, health: newHealth(t.conf.HostID), places: map[string]*place{}, asking: map[string]chan struct{}{}}
}

// holder is how this host is named in leases.
func (f *Fetcher) holder() string { return "host/" + f.t.conf.HostID }

func (f *Fetcher) lease(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := f.t.registry.AcquireLease(ctx, &snapshotv1.AcquireLeaseRequest{SnapshotId: id, Holder: f.holder(), TtlSec: uint32(leaseTime / time.Second)})
	return err
}

// Find implements snapstore.Fetcher. The snapshot is leased, so that it stays readable from here on whatever becomes of it.
func (f *Fetcher) Find(ctx context.Context, id string) (_ *snapstore.Record, done func(), err error) {
	gone := f.come(id)
	defer func() {
		if err != nil {
			gone()
		}
	}()
	if err := f.hold(ctx, id); err != nil {
		return nil, nil, f.notFound(id, err)
	}
	r, err := f.Record(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	f.t.wantReport()
	return r, gone, nil
}

// Record implements snapstore.Fetcher.
func (f *Fetcher) Record(ctx context.Context, id string) (*snapstore.Record, error) {
	m, err := f.t.registry.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: id})
	if err != nil {
		return nil, f.notFound(id, err)
	}
	r, renamed, err := fromManifest(m.GetSnapshot(), m.GetManifest())
	if err != nil {
		return nil, fmt.Errorf("manifest of snapshot %s: %w: %w", id, machine.ErrDamaged, err)
	}
	f.keep(id, m.GetSnapshot().GetHostId(), m.GetHostIds(), renamed)
	return r, nil
}

// come notes that a snapshot is being fetched, until gone is called. If it is not here then, its lease is not needed.
func (f *Fetcher) come(id string) (gone func()) {
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	t.coming[id]++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.coming[id]--; t.coming[id] > 0 {
			return
		}
		delete(t.coming, id)
		if t.marks.get(id) == fetched && !t.store.Has(id) {
			t.left[id] = true
			t.wantReport()
		}
	})
}

// hold takes a lease, and notes before that it has to be released some day: an error does not tell that there is none.
func (f *Fetcher) hold(ctx context.Context, id string) error {
	f.t.leasing.Lock()
	defer f.t.leasing.Unlock()
	if err := f.t.marks.set(id, fetched); err != nil {
		return err
	}
	return f.lease(ctx, id)
}

func (f *Fetcher) notFound(id string, err error) error {
	switch status.Code(err) {
	case codes.NotFound, codes.InvalidArgument:
		return fmt.Errorf("%w: neither this host nor the registry has one with id %s", machine.ErrSnapshotNotFound, id)
	}
	return fmt.Errorf("asking the registry for snapshot %s: %w", id, err)
}

func (f *Fetcher) keep(id, maker string, hosts []string, renamed map[string]string) *place {
	p := &place{maker: maker, renamed: renamed, at: time.Now()}
	for _, h := range hosts {
		if h != f.t.conf.HostID {
			p.hosts = append(p.hosts, h)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, old := range f.places {
		if time.Since(old.at) > time.Hour {
			delete(f.places, k)
		}
	}
	f.places[id] = p
	return p
}

// learn takes in which hosts read a snapshot now.
func (f *Fetcher) learn(id string, hosts []string) {
	if len(hosts) == 0 {
		return
	}
	f.mu.Lock()
	known := f.places[id]
	f.mu.Unlock()
	if known != nil {
		f.keep(id, known.maker, hosts, known.renamed)
	}
}

// place finds who has a snapshot. What is known is used while another asks the registry, and where that cannot be asked.
func (f *Fetcher) place(ctx context.Context, id string) *place {
	f.mu.Lock()
	known, asked := f.places[id], f.asking[id]
	if known != nil && (asked != nil || time.Since(known.at) < placesTime) {
		f.mu.Unlock()
		return known
	}
	if asked == nil {
		f.asking[id] = make(chan struct{})
		f.mu.Unlock()
		return f.ask(ctx, id, known)
	}
	f.mu.Unlock()
	select {
	case <-asked:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if known = f.places[id]; known == nil {
		known = &place{}
	}
	return known
}

// ask asks the registry who has a snapshot, for all who wait for that.
func (f *Fetcher) ask(ctx context.Context, id string, known *place) *place {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(f.asking[id])
		delete(f.asking, id)
	}()
	ctx, cancel := context.WithTimeout(ctx, stallTime)
	defer cancel()
	m, err := f.t.registry.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: id})
	if err == nil {
		var renamed map[string]string
		if _, renamed, err = fromManifest(m.GetSnapshot(), m.GetManifest()); err == nil {
			return f.keep(id, m.GetSnapshot().GetHostId(), m.GetHostIds(), renamed)
		}
	}
	if known == nil {
		known = &place{}
	}
	// Not asked again for each range while it does not answer.
	return f.keep(id, known.maker, known.hosts, known.renamed)
}

// ReadAt implements snapstore.Fetcher: peers first, the registry last, and all of them again until the bytes are there or patience ends.
// A VM waits for them, and to wait is better than to fail.
func (f *Fetcher) ReadAt(ctx context.Context, snapshotID string, o snapstore.Object, p []byte, off int64, distrust bool) (string, error) {
	if len(p) == 0 {
		return fromRegistry, nil
	}
	deadline, pause := time.Now().Add(f.t.conf.Patience), firstRound
	for {
		from, final, err := f.round(ctx, snapshotID, o.Key, p, off, distrust)
		if err == nil {
			return from, nil
		}
		if final || ctx.Err() != nil || time.Now().After(deadline) {
			return "", fmt.Errorf("object %s at %d: %w", o.Key, off, err)
		}
		f.t.log.Info("nobody has a range now; asking again", "key", o.Key, "offset", off, "snapshot_id", snapshotID, "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
		pause = min(2*pause, lastRound)
	}
}

// round asks everybody once. Final tells that asking again makes no sense.
func (f *Fetcher) round(ctx context.Context, snapshotID, key string, p []byte, off int64, distrust bool) (from string, final bool, err error) {
	where := f.place(ctx, snapshotID)
	if k := where.renamed[key]; k != "" {
		key = k
	}
	var errs []error
	if !distrust {
		asked := 0
		for _, a := range f.health.asks(where.hosts, where.maker, key, off, snapstore.Shared(ctx)) {
			if asked == maxPeers {
				break
			}
			if err = f.fromPeer(ctx, a, snapshotID, key, p, off); err == nil {
				return fromPeer, false, nil
			}
			if !errors.Is(err, errNoPeer) {
				asked++
			}
			errs = append(errs, fmt.Errorf("host %s: %w", a.host, err))
		}
	}
	err = f.fromRegistry(ctx, snapshotID, key, p, off)
	if err == nil {
		return fromRegistry, false, nil
	}
	lost := status.Code(err) == codes.NotFound || status.Code(err) == codes.DataLoss || status.Code(err) == codes.OutOfRange
	errs = append(errs, fmt.Errorf("registry: %w", err))
	// What is not uploaded yet only a peer has, which may be well again later.
	return "", lost && (distrust || len(where.hosts) == 0), errors.Join(errs...)
}

// errNoPeer wraps why a host cannot even be asked.
var errNoPeer = errors.New("not asked")

// fromPeer reads a range from another host, and remembers if that did not go well.
func (f *Fetcher) fromPeer(ctx context.Context, a ask, snapshotID, key string, p []byte, off int64) (err error) {
	defer func() { f.t.metrics.fetched(ctx, fromPeer, len(p), err) }()
	if f.t.conf.Peers == nil {
		return fmt.Errorf("%w: there are no peers", errNoPeer)
	}
	conn, err := f.t.conf.Peers.Dial(a.host)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoPeer, err)
	}
	wait := stallTime
	if a.fetch {
		wait = f.t.conf.Turn
	}
	err = fill(ctx, p, wait, func(ctx context.Context) (frames, error) {
		return hostv1.NewPeerServiceClient(conn).ReadObject(ctx, &hostv1.ReadObjectRequest{
			Key: key, Offset: off, Length: int64(len(p)), Fetch: a.fetch, SnapshotId: snapshotID,
		})
	})
	switch {
	case err == nil:
		f.health.answered(a, key)
	case status.Code(err) == codes.NotFound:
		f.health.lacking(a, key)
	case ctx.Err() != nil:
	case a.fetch && errors.Is(err, errStalled) && !f.health.waited(a, key):
		f.t.log.Debug("a peer did not fetch a range in time; others are asked", "peer", a.host, "key", key)
	default:
		f.t.log.Info("a peer did not answer and is left alone for a while", "peer", a.host, "key", key, "error", err)
		f.health.failed(a.host)
	}
	return err
}

// fromRegistry reads a range from the registry, and learns who else reads the snapshot.
func (f *Fetcher) fromRegistry(ctx context.Context, snapshotID, key string, p []byte, off int64) (err error) {
	defer func() { f.t.metrics.fetched(ctx, fromRegistry, len(p), err) }()
	return fill(ctx, p, stallTime, func(ctx context.Context) (frames, error) {
		s, err := f.t.registry.ReadObject(ctx, &snapshotv1.ReadObjectRequest{Key: key, Offset: off, Length: int64(len(p)), SnapshotId: snapshotID})
		return registryFrames{s, func(hosts []string) { f.learn(snapshotID, hosts) }}, err
	})
}

// frames is a stream of bytes.
type frames interface {
	Recv() (*hostv1.ReadObjectResponse, error)
}

// registryFrames makes the registry's stream one.
type registryFrames struct {
	snapshotv1.RegistryService_ReadObjectClient
	learn func(hosts []string)
}

func (s registryFrames) Recv() (*hostv1.ReadObjectResponse, error) {
	m, err := s.RegistryService_ReadObjectClient.Recv()
	s.learn(m.GetHostIds())
	return &hostv1.ReadObjectResponse{Data: m.GetData()}, err
}

var errStalled = status.Error(codes.DeadlineExceeded, "it sends nothing any more")

// fill reads exactly p from a stream that must not stand still; its first bytes may take wait.
func fill(ctx context.Context, p []byte, wait time.Duration, open func(context.Context) (frames, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(wait, func() { cancel(errStalled) })
	defer stall.Stop()
	err := drain(ctx, p, stall, open)
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

func drain(ctx context.Context, p []byte, stall *time.Timer, open func(context.Context) (frames, error)) error {
	s, err := open(ctx)
	if err != nil {
		return err
	}
	for rest := p; ; {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			if len(rest) > 0 {
				return status.Errorf(codes.Unavailable, "it sent %d bytes of %d", len(p)-len(rest), len(p))
			}
			return nil
		}
		if err != nil {
			return err
		}
		if len(m.GetData()) > len(rest) {
			return status.Errorf(codes.Internal, "it sent more than the %d bytes asked for", len(p))
		}
		rest = rest[copy(rest, m.GetData()):]
		stall.Reset(stallTime)
	}
}
