package meshtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// host is one host's data plane. Commands run as processes of this machine, in the sandbox's directory.
type host struct {
	guestv1.UnimplementedProcessServiceServer
	guestv1.UnimplementedFileServiceServer
	guestv1.UnimplementedPortServiceServer
	hostv1.UnimplementedHostServiceServer
	mesh  *Mesh
	index int

	mu        sync.Mutex // guards processes
	processes map[string]*process
	running   sync.WaitGroup
}

// stop ends what still runs.
func (h *host) stop() {
	h.mu.Lock()
	for _, p := range h.processes {
		p.kill()
	}
	h.mu.Unlock()
	h.running.Wait()
}

// home is the directory of a sandbox that is here.
func (h *host) home(id string) (string, error) {
	h.mesh.mu.Lock()
	defer h.mesh.mu.Unlock()
	if o := h.mesh.sandboxes[id]; o == nil || o.host != h.index {
		return "", apierr.E(codes.NotFound, apierr.SandboxNotHere, "sandbox "+id+" is not on this host")
	}
	dir := filepath.Join(h.mesh.dir, id)
	return dir, os.MkdirAll(dir, 0o755)
}

func command(dir, cmd string, args []string, env map[string]string) *exec.Cmd {
	c := exec.Command(cmd, args...)
	c.Dir, c.Env = dir, append(os.Environ(), "HOME="+dir)
	for k, v := range env {
		c.Env = append(c.Env, k+"="+v)
	}
	return c
}

// exitCode is a shell's exit code of a command that was run, or could not be.
func exitCode(err error) (int32, string) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, ""
	case errors.As(err, &exit):
		if code := exit.ExitCode(); code >= 0 {
			return int32(code), ""
		}
		return 137, ""
	case errors.Is(err, os.ErrPermission):
		return 126, err.Error()
	}
	return 127, err.Error()
}

// Exec implements ProcessService.
func (h *host) Exec(_ context.Context, q *guestv1.ExecRequest) (*guestv1.ExecResponse, error) {
	dir, err := h.home(q.GetSandboxId())
	if err != nil {
		return nil, err
	}
	c := command(dir, q.GetCmd(), q.GetArgs(), q.GetEnv())
	var stdout, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(q.GetStdin()), &stdout, &stderr
	code, why := exitCode(c.Run())
	return &guestv1.ExecResponse{ExitCode: code, Error: why, Stdout: stdout.String(), Stderr: stderr.String(), Usage: &guestv1.ResourceUsage{}}, nil
}

// ListProcesses implements ProcessService.
func (h *host) ListProcesses(_ context.Context, q *guestv1.ListProcessesRequest) (*guestv1.ListProcessesResponse, error) {
	if _, err := h.home(q.GetSandboxId()); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	res := &guestv1.ListProcessesResponse{}
	for _, p := range h.processes {
		res.Processes = append(res.Processes, p.describe())
	}
	slices.SortFunc(res.Processes, func(a, b *guestv1.Process) int { return int(a.GetPid() - b.GetPid()) })
	return res, nil
}

// SignalProcess implements ProcessService. Every signal kills.
func (h *host) SignalProcess(_ context.Context, q *guestv1.SignalProcessRequest) (*guestv1.SignalProcessResponse, error) {
	p, err := h.process(q.GetProcessId())
	if err != nil {
		return nil, err
	}
	p.kill()
	return &guestv1.SignalProcessResponse{}, nil
}

func (h *host) process(id string) (*process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.processes[id]; p != nil {
		return p, nil
	}
	return nil, apierr.E(codes.NotFound, "PROCESS_NOT_FOUND", "there is no process "+id)
}

// ExecStream implements ProcessService.
func (h *host) ExecStream(s grpc.BidiStreamingServer[guestv1.ExecStreamRequest, guestv1.ExecStreamResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	dir, err := h.home(first.GetSandboxId())
	if err != nil {
		return err
	}
	var p *process
	from := first.GetAttach().GetFromSequence()
	if first.GetStart() != nil {
		p = h.start(dir, first.GetStart())
		h.mu.Lock()
		h.processes[p.id] = p
		h.mu.Unlock()
	} else if p, err = h.process(first.GetAttach().GetProcessId()); err != nil {
		return err
	}
	// Reading ends with the stream, which ends with this handler.
	h.running.Go(func() { p.feed(s) })
	if err := p.follow(s, from); err != nil {
		p.left()
		return err
	}
	return nil
}

// ReadConsole implements HostService.
func (h *host) ReadConsole(q *hostv1.ReadConsoleRequest, s grpc.ServerStreamingServer[hostv1.ReadConsoleResponse]) error {
	if _, err := h.home(q.GetSandboxId()); err != nil {
		return err
	}
	text := []byte("Linux version 6.1\nguestd serves\n")
	if n := q.GetTailBytes(); n > 0 {
		text = text[max(0, len(text)-int(n)):]
	}
	if err := s.Send(&hostv1.ReadConsoleResponse{Data: text}); err != nil || !q.GetFollow() {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

// GetSandboxMetrics implements HostService.
func (h *host) GetSandboxMetrics(_ context.Context, q *hostv1.GetSandboxMetricsRequest) (*hostv1.GetSandboxMetricsResponse, error) {
	_, err := h.home(q.GetSandboxId())
	return &hostv1.GetSandboxMetricsResponse{CpuUsec: 1234}, err
}
