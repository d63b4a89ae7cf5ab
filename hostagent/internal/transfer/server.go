package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/coveyhq/covey/hostagent/internal/snapstore"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// reasonNotHere is what this host answers where it lacks an object or a range of it; others may have it.
const reasonNotHere = "OBJECT_NOT_HERE"

// Objects are what a host has on its disk.
type Objects interface {
	OpenObject(key string) (*snapstore.ObjectFile, error)
	// AwaitObject is OpenObject for who reads a snapshot that is perhaps just coming here.
	AwaitObject(ctx context.Context, snapshotID, key string) (*snapstore.ObjectFile, error)
}

type peerServer struct {
	hostv1.UnimplementedPeerServiceServer
	objects Objects
	log     *slog.Logger
}

// NewPeerServer serves this host's objects to other hosts. It knows no tenants: hosts trust each other, and who may ask is
// decided by their identities.
func NewPeerServer(o Objects, log *slog.Logger) hostv1.PeerServiceServer {
	return &peerServer{objects: o, log: log}
}

// ReadObject implements the service. Bytes are sent as they lie on the disk: who asked verifies them.
func (s *peerServer) ReadObject(r *hostv1.ReadObjectRequest, stream grpc.ServerStreamingServer[hostv1.ReadObjectResponse]) (err error) {
	ctx := stream.Context()
	f, err := s.open(ctx, r)
	if err != nil {
		return s.status(ctx, r.GetKey(), err)
	}
	defer func() {
		if e := f.Close(); e != nil {
			s.log.WarnContext(ctx, "an object's file cannot be closed", "key", r.GetKey(), "error", e)
		}
	}()
	off, n := r.GetOffset(), r.GetLength()
	if off < 0 || n < 0 || off > f.Size || n > f.Size-off {
		return apierr.E(codes.OutOfRange, "OUT_OF_RANGE", "the range is beyond the object's end", "key", r.GetKey())
	}
	if n == 0 {
		n = f.Size - off
	}
	if r.GetFetch() {
		// What cannot be fetched here who asked may get elsewhere.
		if err := f.Fetch(ctx, off, n); err != nil {
			s.log.DebugContext(ctx, "a range cannot be fetched for another host", "key", r.GetKey(), "error", err)
			return s.status(ctx, r.GetKey(), snapstore.ErrNotHere)
		}
	}
	for n > 0 {
		p := make([]byte, min(n, frameSize))
		if _, err := f.ReadAt(p, off); err != nil {
			return s.status(ctx, r.GetKey(), err)
		}
		if err := stream.Send(&hostv1.ReadObjectResponse{Data: p}); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func (s *peerServer) open(ctx context.Context, r *hostv1.ReadObjectRequest) (*snapstore.ObjectFile, error) {
	if r.GetFetch() {
		return s.objects.AwaitObject(ctx, r.GetSnapshotId(), r.GetKey())
	}
	return s.objects.OpenObject(r.GetKey())
}

func (s *peerServer) status(ctx context.Context, key string, err error) error {
	if errors.Is(err, snapstore.ErrNotHere) || errors.Is(err, io.EOF) {
		return apierr.E(codes.NotFound, reasonNotHere, "this host does not have it", "key", key)
	}
	s.log.ErrorContext(ctx, "an object cannot be read for another host", "key", key, "error", err)
	return apierr.E(codes.Internal, apierr.Internal, "the object cannot be read; the host's log says why", "key", key)
}
