package agent

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
)

const (
	consoleFrame = 64 << 10
	// consolePoll is how often a followed log is looked at: a file has no other way to say that it has grown which also works
	// for every filesystem.
	consolePoll = 200 * time.Millisecond
)

// ReadConsole implements hostv1.HostServiceServer.
func (s *Service) ReadConsole(r *hostv1.ReadConsoleRequest, stream grpc.ServerStreamingServer[hostv1.ReadConsoleResponse]) error {
	ctx := stream.Context()
	m, err := s.host.Find(r.GetSandboxId())
	if err == nil {
		err = s.sendConsole(ctx, m, r, stream)
	}
	return toStatus(ctx, s.log, "console", r.GetSandboxId(), err)
}

func (s *Service) sendConsole(ctx context.Context, m *machine.Machine, r *hostv1.ReadConsoleRequest, stream grpc.ServerStreamingServer[hostv1.ReadConsoleResponse]) error {
	f, err := os.Open(s.host.ConsolePath(m.ID()))
	if errors.Is(err, fs.ErrNotExist) {
		// A VM that has not been started, or one whose log went with it.
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if n := r.GetTailBytes(); n > 0 {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if _, err := f.Seek(max(0, st.Size()-n), io.SeekStart); err != nil {
			return err
		}
	}
	buf := make([]byte, consoleFrame)
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		// Asked before reading: what is written until the end is then still read.
		ended := !m.Status().State.Held()
		if err := copyConsole(f, buf, stream); err != nil || !r.GetFollow() || ended {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyConsole sends what there is.
func copyConsole(f *os.File, buf []byte, stream grpc.ServerStreamingServer[hostv1.ReadConsoleResponse]) error {
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := stream.Send(&hostv1.ReadConsoleResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
