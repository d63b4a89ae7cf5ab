package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// frameSize is how much is sent in one message of an upload.
const frameSize = 512 << 10

// damage is an object of a snapshot that is damaged on this host.
type damage struct {
	object snapstore.Object
	error
	// final: nobody else has it whole.
	final bool
}

func (d *damage) Unwrap() error { return d.error }

// upload brings a snapshot into the registry. The error is a damage where it found one; if that is final nothing can be done but wait.
func (t *Transfer) upload(ctx context.Context, id string) error {
	x, err := t.store.Export(id)
	if err != nil {
		return err
	}
	defer x.Close()
	if d := t.queue.damageOf(id); d != nil {
		// Nothing is sent before it is whole.
		if err := x.Verify(ctx, d.object); err != nil {
			return &damage{d.object, err, true}
		}
	}
	err = t.uploadAll(ctx, x)
	var d *damage
	if errors.As(err, &d) && ctx.Err() == nil {
		if e := x.Verify(ctx, d.object); e != nil {
			return &damage{d.object, e, true}
		}
	}
	return err
}

func (t *Transfer) uploadAll(ctx context.Context, x *snapstore.Export) error {
	id := x.Record.Manifest.ID
	state, err := t.register(ctx, x.Record)
	if status.Code(err) == codes.AlreadyExists {
		return t.settle(ctx, id, err)
	}
	if err != nil || state == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE {
		return describe("register", err)
	}
	// One that cannot be sent now keeps none of the others from it.
	var g errgroup.Group
	for _, o := range x.Objects {
		g.Go(func() error { return t.uploadObject(ctx, x, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	_, err = t.registry.CommitSnapshot(ctx, &snapshotv1.CommitSnapshotRequest{SnapshotId: id})
	return describe("commit", err)
}

// settle is for a snapshot that the registry has in another form: a copy that was fetched here, whose mark was lost. If that is
// durable there is nothing to do.
func (t *Transfer) settle(ctx context.Context, id string, cause error) error {
	m, err := t.registry.GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: id})
	if err == nil && m.GetSnapshot().GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE {
		return nil
	}
	return describe("register", cause)
}

// How often an object is tried that another host uploads too, and the pause between.
const (
	takenTries = 10
	takenPause = time.Second
)

// uploadObject sends what the registry lacks of an object. Where another's upload of it takes over, only this object waits.
func (t *Transfer) uploadObject(ctx context.Context, x *snapstore.Export, o snapstore.Object) (err error) {
	for range takenTries {
		if err = t.uploadOnce(ctx, x, o); apierr.Reason(err) != "UPLOAD_TAKEN_OVER" {
			break
		}
		timer := time.NewTimer(takenPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
	return describe(o.Key, err)
}

// uploadOnce takes one of the places of uploads.
func (t *Transfer) uploadOnce(ctx context.Context, x *snapstore.Export, o snapstore.Object) error {
	select {
	case t.streams <- struct{}{}:
		defer func() { <-t.streams }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return t.send(ctx, x, o)
}

// send is one stream. What the registry has already is not opened here, where it may be there in part alone.
func (t *Transfer) send(ctx context.Context, x *snapstore.Export, o snapstore.Object) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.registry.UploadObject(ctx)
	if err != nil {
		return err
	}
	first := &snapshotv1.UploadObjectRequest{SnapshotId: x.Record.Manifest.ID, Object: toObject(o)}
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	m, err := stream.Recv()
	if err != nil || m.GetComplete() {
		return err
	}
	if err := t.sendFrom(stream, x, o, m.GetStoredBytes()); err != nil {
		return err
	}
	m, err = stream.Recv()
	if apierr.Reason(err) == "CHECKSUM_MISMATCH" {
		return &damage{o, err, false}
	}
	if err == nil && !m.GetComplete() {
		err = fmt.Errorf("the registry has %d of %d bytes and wants no more", m.GetStoredBytes(), o.Size)
	}
	return err
}

// sendFrom sends an object from an offset on. Where the stream has ended it returns without an error: the registry's answer says why.
func (t *Transfer) sendFrom(stream snapshotv1.RegistryService_UploadObjectClient, x *snapstore.Export, o snapstore.Object, off int64) (err error) {
	f, err := x.Open(o.Key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for off < o.Size {
		// gRPC may look at a message after Send, so each has bytes of its own.
		p := make([]byte, min(frameSize, o.Size-off))
		if _, err := f.ReadAt(p, off); err != nil {
			return &damage{o, fmt.Errorf("reading it here: %w", err), false}
		}
		if err := stream.Send(&snapshotv1.UploadObjectRequest{Offset: off, Data: p}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		off += int64(len(p))
		t.metrics.uploadBytes.Add(stream.Context(), int64(len(p)))
	}
	return nil
}
