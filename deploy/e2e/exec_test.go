package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func glob(pattern string) []string {
	found, err := filepath.Glob(pattern)
	if err != nil {
		panic(err)
	}
	return found
}

func TestACommandThatDoesNotExistIsExitCode127(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	res, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "no-such-command"})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetExitCode() != 127 || !strings.Contains(res.GetError(), "no-such-command") {
		t.Errorf("exit code %d, error %q", res.GetExitCode(), res.GetError())
	}
	res, err = s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "/etc/passwd"})
	if err != nil || res.GetExitCode() != 126 {
		t.Errorf("a file that is not executable: exit code %d, %v", res.GetExitCode(), err)
	}
}

func TestOutputThatIsNotUTF8ArrivesAsItIs(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	res, err := s.processes.Exec(ctx, &guestv1.ExecRequest{SandboxId: sb.GetId(), Cmd: "/bin/sh", Args: []string{"-c", `printf 'a\377\376b'`}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(res.GetStdoutRaw(), []byte("a\xff\xfeb")) || !strings.HasPrefix(res.GetStdout(), "a\uFFFD") {
		t.Errorf("raw %q, text %q", res.GetStdoutRaw(), res.GetStdout())
	}
}

// stream starts a process and returns the stream after its first frame, and the process's id.
func stream(t *testing.T, ctx context.Context, id string, p *guestv1.ProcessStart) (guestv1.ProcessService_ExecStreamClient, string) {
	t.Helper()
	st, err := s.processes.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&guestv1.ExecStreamRequest{SandboxId: id, Frame: &guestv1.ExecStreamRequest_Start{Start: p}}); err != nil {
		t.Fatal(err)
	}
	f, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if f.GetStarted() == nil {
		t.Fatalf("the first frame is %v", f)
	}
	return st, f.GetStarted().GetProcessId()
}

// drain reads a stream to its end, gives output to take, and returns how the process ended.
func drain(st guestv1.ProcessService_ExecStreamClient, take func(*guestv1.Output)) (*guestv1.ProcessExited, error) {
	var exited *guestv1.ProcessExited
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return exited, nil
		}
		if err != nil {
			return exited, err
		}
		switch {
		case f.GetOutput() != nil:
			take(f.GetOutput())
		case f.GetExited() != nil:
			exited = f.GetExited()
		}
	}
}

func TestAHundredMegabytesOfOutputStreamInConstantMemory(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	const size = 100 << 20
	before := residents(t)
	st, _ := stream(t, ctx, sb.GetId(), &guestv1.ProcessStart{Cmd: "head", Args: []string{"-c", strconv.Itoa(size), "/dev/zero"}})
	var n int64
	peak := before
	exited, err := drain(st, func(o *guestv1.Output) {
		if uint64(n) != o.GetSequence() {
			t.Fatalf("sequence %d at byte %d", o.GetSequence(), n)
		}
		if n>>24 != (n+int64(len(o.GetData())))>>24 {
			peak = peak.max(residents(t))
		}
		n += int64(len(o.GetData()))
	})
	if err != nil || exited.GetExitCode() != 0 || n != size {
		t.Fatalf("%d of %d bytes, %v, %v", n, size, exited, err)
	}
	for name, now := range peak {
		if grown := now - before[name]; grown > 48<<20 {
			t.Errorf("%s grew by %d MiB", name, grown>>20)
		}
	}
}

// memory is the resident size of daemons, bytes, by name.
type memory map[string]int64

func (m memory) max(o memory) memory {
	both := memory{}
	for k, v := range m {
		both[k] = max(v, o[k])
	}
	return both
}

func residents(t *testing.T) memory {
	t.Helper()
	m := memory{}
	for _, p := range s.m.Processes {
		if !strings.HasPrefix(p.Name, "gatewayd") && !strings.HasPrefix(p.Name, "hostagentd") {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		m[p.Name] = pages * int64(os.Getpagesize())
	}
	return m
}

func TestAClientThatGoesAwayTakesItsProcessWithIt(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	gone, leave := context.WithCancel(ctx)
	_, pid := stream(t, gone, sb.GetId(), &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"1000"}})
	leave()
	eventually(t, 10*time.Second, "process ended", func() bool { return !running(t, ctx, sb.GetId(), pid) })
}

func running(t *testing.T, ctx context.Context, id, process string) bool {
	t.Helper()
	res, err := s.processes.ListProcesses(ctx, &guestv1.ListProcessesRequest{SandboxId: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.GetProcesses() {
		if p.GetProcessId() == process {
			return p.GetRunning()
		}
	}
	return false
}

func TestADetachedProcessCanBeAttachedAgainWithItsOutput(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	first, cancel := context.WithCancel(ctx)
	_, pid := stream(t, first, sb.GetId(), &guestv1.ProcessStart{Cmd: "/bin/sh", Args: []string{"-c", "echo one; sleep 1; echo two; exit 3"}, Detached: true})
	cancel()
	st, err := s.processes.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	attach := &guestv1.ExecStreamRequest{SandboxId: sb.GetId(), Frame: &guestv1.ExecStreamRequest_Attach{Attach: &guestv1.ProcessAttach{ProcessId: pid}}}
	if err := st.Send(attach); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	exited, err := drain(st, func(o *guestv1.Output) { out.Write(o.GetData()) })
	if err != nil || exited.GetExitCode() != 3 || out.String() != "one\ntwo\n" {
		t.Errorf("%q, %v, %v", out.String(), exited, err)
	}
}

func TestATerminalHasTheSizeAskedForAndTakesSignals(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{Template: "base"})
	st, _ := stream(t, ctx, sb.GetId(), &guestv1.ProcessStart{Cmd: "bash", Args: []string{"-c", "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.1; done"}, Terminal: &guestv1.TerminalSize{Rows: 33, Cols: 101}})
	var out bytes.Buffer
	resized := false
	exited, err := drain(st, func(o *guestv1.Output) {
		out.Write(o.GetData())
		if !resized && strings.Contains(out.String(), "33 101") {
			resized = true
			if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Resize{Resize: &guestv1.TerminalSize{Rows: 44, Cols: 55}}}); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || exited.GetExitCode() != 5 || !strings.Contains(out.String(), "44 55") {
		t.Errorf("%q, %v, %v", out.String(), exited, err)
	}
}

func TestFilesComeBackAsTheyWentInAndPathsCannotClimbOut(t *testing.T) {
	ctx := start(t)
	sb := create(t, ctx, &sandboxv1.CreateSandboxRequest{})
	content := make([]byte, 3<<20+17)
	rand.Read(content)
	w, err := s.files.WriteFile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head := &guestv1.WriteFileRequest{SandboxId: sb.GetId(), Header: &guestv1.WriteFileHeader{Path: "a/b/data", MakeParents: true}}
	if err := w.Send(head); err != nil {
		t.Fatal(err)
	}
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 256<<10)
		if err := w.Send(&guestv1.WriteFileRequest{Data: rest[:n]}); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if res, err := w.CloseAndRecv(); err != nil || res.GetWrittenBytes() != int64(len(content)) {
		t.Fatalf("%v, %v", res, err)
	}
	got, err := read(ctx, &guestv1.ReadFileRequest{SandboxId: sb.GetId(), Path: "a/b/data"})
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(content), err)
	}
	_, err = read(ctx, &guestv1.ReadFileRequest{SandboxId: sb.GetId(), Path: "../../../etc/shadow"})
	wantError(t, err, codes.InvalidArgument, "path")
	_, err = read(ctx, &guestv1.ReadFileRequest{SandboxId: sb.GetId(), Path: "/no/such"})
	wantError(t, err, codes.NotFound, "/no/such")
}

func read(ctx context.Context, r *guestv1.ReadFileRequest) ([]byte, error) {
	st, err := s.files.ReadFile(ctx, r)
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, f.GetData()...)
	}
}
