package agent

import (
	"google.golang.org/grpc"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
)

// watchBuffer is how many changes may wait for one watcher until it gets the whole list again instead.
const watchBuffer = 256

// WatchSandboxes implements hostv1.HostServiceServer. A watcher that is too slow gets the whole list anew, ended by synced again.
func (s *Service) WatchSandboxes(_ *hostv1.WatchSandboxesRequest, stream grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
	sub := s.host.Watch(watchBuffer)
	defer sub.Close()
	if err := s.sendAll(stream); err != nil {
		return err
	}
	for {
		select {
		case e := <-sub.Events():
			if e.Resync {
				sub.Resynced()
				if err := s.sendAll(stream); err != nil {
					return err
				}
				continue
			}
			if err := stream.Send(&hostv1.WatchSandboxesResponse{Sandbox: encodeSandbox(e.Status)}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *Service) sendAll(stream grpc.ServerStreamingServer[hostv1.WatchSandboxesResponse]) error {
	for _, st := range s.host.List() {
		if err := stream.Send(&hostv1.WatchSandboxesResponse{Sandbox: encodeSandbox(st)}); err != nil {
			return err
		}
	}
	return stream.Send(&hostv1.WatchSandboxesResponse{Synced: true})
}
