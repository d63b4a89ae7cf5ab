package rpc

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"

	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/snapshotsvc/registry"
)

// frameSize is the most data in one message of a stream.
const frameSize = 1 << 20

type hosts struct {
	snapshotv1.UnimplementedRegistryServiceServer
	Config
}

func (s *hosts) RegisterSnapshot(ctx context.Context, r *snapshotv1.RegisterSnapshotRequest) (*snapshotv1.RegisterSnapshotResponse, error) {
	if err := caller.SpeaksFor(ctx, "host_id", r.GetHostId()); err != nil {
		return nil, err
	}
	snap, err := s.Registry.Register(ctx, s.caller(ctx), registry.Registration{
		Tenant: r.GetTenantId(), Kind: fromKind(r.GetKind()), Name: r.GetName(), Manifest: fromManifest(r.GetManifest()),
		HostID: r.GetHostId(), Metadata: r.GetMetadata(),
	})
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.RegisterSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *hosts) CommitSnapshot(ctx context.Context, r *snapshotv1.CommitSnapshotRequest) (*snapshotv1.CommitSnapshotResponse, error) {
	snap, err := s.Registry.Commit(ctx, s.caller(ctx), r.GetSnapshotId())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.CommitSnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *hosts) GetManifest(ctx context.Context, r *snapshotv1.GetManifestRequest) (*snapshotv1.GetManifestResponse, error) {
	asks, caller := r.GetTenantId(), s.caller(ctx)
	if asks == "" {
		asks = caller
	}
	if caller != "" && caller != asks {
		return nil, s.fail(ctx, registry.NoSnapshot(r.GetSnapshot()))
	}
	snap, hostIDs, err := s.Registry.Manifest(ctx, asks, r.GetSnapshot())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.GetManifestResponse{Snapshot: toSnapshot(snap), Manifest: toManifest(snap.Manifest), HostIds: hostIDs}, nil
}

func (s *hosts) AcquireLease(ctx context.Context, r *snapshotv1.AcquireLeaseRequest) (*snapshotv1.AcquireLeaseResponse, error) {
	if err := speaksForHolder(ctx, r.GetHolder()); err != nil {
		return nil, err
	}
	ttl := time.Duration(r.GetTtlSec()) * time.Second
	if err := s.Registry.Acquire(ctx, s.caller(ctx), r.GetSnapshotId(), r.GetHolder(), ttl); err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.AcquireLeaseResponse{}, nil
}

func (s *hosts) ReleaseLease(ctx context.Context, r *snapshotv1.ReleaseLeaseRequest) (*snapshotv1.ReleaseLeaseResponse, error) {
	if err := speaksForHolder(ctx, r.GetHolder()); err != nil {
		return nil, err
	}
	if err := s.Registry.Release(ctx, s.caller(ctx), r.GetSnapshotId(), r.GetHolder()); err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.ReleaseLeaseResponse{}, nil
}

// speaksForHolder refuses a host agent that takes or ends a lease of somebody else: its own are of "host/<id>".
func speaksForHolder(ctx context.Context, holder string) error {
	id, ok := strings.CutPrefix(holder, "host/")
	if !ok {
		id = "" // Nobody's.
	}
	return caller.SpeaksFor(ctx, "holder", id)
}

func (s *hosts) DropSnapshot(ctx context.Context, r *snapshotv1.DropSnapshotRequest) (*snapshotv1.DropSnapshotResponse, error) {
	if err := s.Registry.Drop(ctx, s.caller(ctx), r.GetSnapshotId()); err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.DropSnapshotResponse{}, nil
}

func (s *hosts) ListHostSnapshots(ctx context.Context, r *snapshotv1.ListHostSnapshotsRequest) (*snapshotv1.ListHostSnapshotsResponse, error) {
	// What a host does not list it is taken to have no more.
	if err := caller.SpeaksFor(ctx, "host_id", r.GetHostId()); err != nil {
		return nil, err
	}
	ids, err := s.Registry.HostSnapshots(ctx, r.GetHostId(), r.GetSnapshotIds())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.ListHostSnapshotsResponse{ExistingIds: ids}, nil
}

func (s *hosts) GetUsage(ctx context.Context, r *snapshotv1.GetUsageRequest) (*snapshotv1.GetUsageResponse, error) {
	asks, caller := r.GetTenantId(), s.caller(ctx)
	if asks == "" {
		asks = caller
	}
	if caller != "" && caller != asks {
		return nil, s.fail(ctx, registry.Field("tenant_id", "must be the caller's tenant"))
	}
	u, err := s.Registry.Usage(ctx, asks)
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return &snapshotv1.GetUsageResponse{StoredBytes: uint64(u.Bytes), Snapshots: uint32(u.Snapshots), TemplateIds: u.Templates}, nil
}

func (s *hosts) ReadObject(r *snapshotv1.ReadObjectRequest, stream grpc.ServerStreamingServer[snapshotv1.ReadObjectResponse]) error {
	ctx := stream.Context()
	body, n, err := s.Registry.Read(ctx, s.caller(ctx), r.GetKey(), r.GetOffset(), r.GetLength())
	if err != nil {
		return s.fail(ctx, err)
	}
	err = send(stream, s.Registry.Readers(ctx, r.GetSnapshotId()), body, n)
	return s.fail(ctx, errors.Join(err, body.Close()))
}

// send copies n bytes into frames, each with a buffer of its own, as gRPC may look at a message after Send. The first one names hosts.
func send(stream grpc.ServerStreamingServer[snapshotv1.ReadObjectResponse], hosts []string, body io.Reader, n int64) error {
	for ; n > 0; hosts = nil {
		p := make([]byte, min(n, frameSize))
		if _, err := io.ReadFull(body, p); err != nil {
			return &registry.Error{Kind: registry.Unavailable, Reason: "STORE_UNAVAILABLE", Message: "the object could not be read to its end; try again", Err: err}
		}
		if err := stream.Send(&snapshotv1.ReadObjectResponse{Data: p, HostIds: hosts}); err != nil {
			return err
		}
		n -= int64(len(p))
	}
	return nil
}

func (s *hosts) UploadObject(stream grpc.BidiStreamingServer[snapshotv1.UploadObjectRequest, snapshotv1.UploadObjectResponse]) error {
	return s.fail(stream.Context(), s.upload(stream))
}

// upload answers the first frame with where to go on, and the last byte, or the client's end of sending, with how far it is.
func (s *hosts) upload(stream grpc.BidiStreamingServer[snapshotv1.UploadObjectRequest, snapshotv1.UploadObjectResponse]) error {
	ctx := stream.Context()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetObject() == nil {
		return registry.Field("object", "must be set in the first frame")
	}
	u, err := s.Registry.Upload(ctx, s.caller(ctx), m.GetSnapshotId(), *fromObject(m.GetObject()))
	if err != nil {
		return err
	}
	defer u.Close()
	for first := true; ; first = false {
		if len(m.GetData()) > frameSize {
			return registry.Field("data", "must be at most %d bytes a frame, got %d", frameSize, len(m.GetData()))
		}
		complete := false
		if len(m.GetData()) > 0 {
			if complete, err = u.Write(ctx, m.GetOffset(), m.GetData()); err != nil {
				return err
			}
		}
		if first || complete {
			off, whole := u.State()
			if err := stream.Send(&snapshotv1.UploadObjectResponse{StoredBytes: off, Complete: whole}); err != nil {
				return err
			}
			if whole {
				return nil
			}
		}
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			off, whole := u.State()
			return stream.Send(&snapshotv1.UploadObjectResponse{StoredBytes: off, Complete: whole})
		}
		if err != nil {
			return err
		}
	}
}
