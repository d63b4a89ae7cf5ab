package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// boot starts a VM of an image and returns once guestd has answered.
func boot(t *testing.T, ctx context.Context, image string) (*machine, *client) {
	t.Helper()
	m := newMachine(t, image, 256)
	began := time.Now()
	m.start()
	c := m.connect(ctx)
	if _, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("guestd answered after %v", time.Since(began).Round(time.Millisecond))
	return m, c
}

func restored(t *testing.T, ctx context.Context, c *client, id string, now time.Time) *guestv1.AfterRestoreResponse {
	t.Helper()
	entropy := make([]byte, 64)
	rand.Read(entropy)
	r, err := c.AfterRestore(ctx, &guestv1.AfterRestoreRequest{
		RestoreId: id, SandboxId: "sb_" + id, NowUnixNs: now.UnixNano(), Entropy: entropy, Hostname: "host-" + id,
		MachineId: fmt.Sprintf("%032x", len(id)), Env: map[string]string{"IDENTITY": id}, Nameservers: []string{"192.0.2.53"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.GetEntropyReseeded() || r.GetHostname() != "host-"+id {
		t.Errorf("%v", r)
	}
	return r
}

// bound is of a whole test, on a machine that may have most of its cores in use. It takes some ten seconds on a quiet one.
const bound = 10 * time.Minute

func TestTheGuestInAVirtualMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	m, c := boot(t, ctx, "tiny")
	t.Run("has its identity only after AfterRestore", func(t *testing.T) { identity(t, ctx, c) })
	t.Run("runs commands as an unprivileged user", func(t *testing.T) { commands(t, ctx, c) })
	t.Run("gives terminals", func(t *testing.T) { terminal(t, ctx, c) })
	t.Run("keeps files", func(t *testing.T) { filesComeBack(t, ctx, c) })
	t.Run("counts leases", func(t *testing.T) { leases(t, ctx, c) })
	t.Run("freezes and thaws by itself", func(t *testing.T) { freezes(t, ctx, c) })
	t.Run("says when memory ran out and survives it", func(t *testing.T) { runsOut(t, ctx, c) })
	t.Run("starts guestd again with its identity, and reaps", func(t *testing.T) { guestdDies(t, ctx, m, c) })
	t.Run("two restores of one snapshot differ", func(t *testing.T) { clones(t, ctx, m) })
}

func TestAGuestWithoutATimerEndsAndSaysWhy(t *testing.T) {
	m := newMachine(t, "tiny", 256)
	for i, a := range m.args {
		if a == "-append" {
			m.args[i+1] += " nolapic_timer"
		}
	}
	m.start()
	select {
	case err := <-m.exited:
		m.exited <- err
	case <-time.After(bound):
		t.Fatal("it goes on")
	}
	if log, err := os.ReadFile(m.console); err != nil || !strings.Contains(string(log), "boot failed: the kernel has found no timer that works") {
		t.Errorf("it ended with %v and\n%s", err, log)
	}
}

func TestTheBaseImageHasWhatPeopleExpect(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	_, c := boot(t, ctx, "base")
	restored(t, ctx, c, "base", time.Now())
	for script, want := range map[string]string{
		`python3 -c 'import ssl, sqlite3, json, os; print(6*7, os.cpu_count())'`:           "42 1",
		"sudo -n id -u; sudo -n hostname":                                                  "0\nhost-base",
		"git init -q r && cd r && git status --short && curl --version | grep -c https":    "1",
		"test -s /etc/ssl/certs/ca-certificates.crt && bash -c 'echo ${BASH_VERSION%%.*}'": "5",
		"ps -o comm= -p 1; covey-lease -- echo leased":                                     "init\nleased",
	} {
		if got := c.sh(ctx, t, "", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func identity(t *testing.T, ctx context.Context, c *client) {
	if h, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil || h.GetSandboxId() != "" || !strings.Contains(h.GetKernel(), "cloud") {
		t.Errorf("%v, %v", h, err)
	}
	future := time.Now().Add(1000 * time.Hour)
	r := restored(t, ctx, c, "first", future)
	if step := time.Duration(r.GetClockStepNs()); step < 999*time.Hour || step > 1001*time.Hour {
		t.Errorf("the clock was moved by %v", step)
	}
	out := c.sh(ctx, t, "", "date +%s; hostname; cat /etc/hostname /etc/machine-id /etc/resolv.conf; grep -c host-first /etc/hosts; echo $IDENTITY")
	lines := strings.Split(out, "\n")
	var now int64
	fmt.Sscan(lines[0], &now)
	if d := now - future.Unix(); d < 0 || d > 100 {
		t.Errorf("the clock is %d s after what was set", d)
	}
	want := []string{"host-first", "host-first", fmt.Sprintf("%032x", 5), "nameserver 192.0.2.53", "1", "first"}
	if got := lines[1:]; strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("%q, want %q", got, want)
	}
}

func commands(t *testing.T, ctx context.Context, c *client) {
	if out := c.sh(ctx, t, "", "id -un; id -u; pwd; cat /proc/1/comm; cat /proc/self/oom_score_adj; ulimit -n"); out != "user\n1000\n/home/user\ninit\n0\n1024" {
		t.Errorf("%q", out)
	}
	if out := c.sh(ctx, t, "root", "id -u; cat /proc/$(pidof exe | tr ' ' '\n' | head -1)/oom_score_adj"); out != "0\n-1000" {
		t.Errorf("%q", out)
	}
	r, err := c.Exec(ctx, &guestv1.ExecRequest{Cmd: "no-such-command"})
	if err != nil || r.GetExitCode() != 127 {
		t.Errorf("%v, %v", r, err)
	}
	r, err = c.Exec(ctx, &guestv1.ExecRequest{Cmd: "/etc/passwd"})
	if err != nil || r.GetExitCode() != 126 {
		t.Errorf("%v, %v", r, err)
	}
	g, err := c.GetMetrics(ctx, &guestv1.GetMetricsRequest{})
	if err != nil || g.GetVcpus() != 1 || g.GetMemoryTotalBytes() < 200<<20 || g.GetDiskTotalBytes() < 400<<20 || g.GetNetRxBytes() == 0 {
		t.Errorf("%v, %v", g, err)
	}
}

func start(t *testing.T, ctx context.Context, c *client, p *guestv1.ProcessStart) (st guestv1.ProcessService_ExecStreamClient, id string) {
	t.Helper()
	st, err := c.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_Start{Start: p}}); err != nil {
		t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil || r.GetStarted() == nil {
		t.Fatalf("%v, %v", r, err)
	}
	return st, r.GetStarted().GetProcessId()
}

func terminal(t *testing.T, ctx context.Context, c *client) {
	p := &guestv1.ProcessStart{Cmd: "/bin/sh", Args: []string{"-c", "stty size; tty; read line; stty size; echo got $line; exit 5"}, Terminal: &guestv1.TerminalSize{Rows: 33, Cols: 101}}
	st, _ := start(t, ctx, c, p)
	var out bytes.Buffer
	var exited *guestv1.ProcessExited
	err := recvAll(st.Recv, func(r *guestv1.ExecStreamResponse) {
		out.Write(r.GetOutput().GetData())
		exited = r.GetExited()
		if strings.HasSuffix(out.String(), "/dev/pts/0\r\n") {
			for _, f := range []*guestv1.ExecStreamRequest{
				{Frame: &guestv1.ExecStreamRequest_Resize{Resize: &guestv1.TerminalSize{Rows: 44, Cols: 55}}},
				{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("me\n")}},
			} {
				if err := st.Send(f); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if want := "33 101\r\n/dev/pts/0\r\nme\r\n44 55\r\ngot me\r\n"; err != nil || out.String() != want || exited.GetExitCode() != 5 {
		t.Errorf("%q, %v, %v", out.String(), exited, err)
	}
}

func filesComeBack(t *testing.T, ctx context.Context, c *client) {
	content := make([]byte, 2<<20+17)
	rand.Read(content)
	w, err := c.files.WriteFile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := &guestv1.WriteFileRequest{Header: &guestv1.WriteFileHeader{Path: "a/b", MakeParents: true}}
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 256<<10)
		r.Data, rest = rest[:n], rest[n:]
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
		r.Header = nil
	}
	if res, err := w.CloseAndRecv(); err != nil || res.GetFile().GetOwner() != "user" {
		t.Fatalf("%v, %v", res, err)
	}
	rd, err := c.files.ReadFile(ctx, &guestv1.ReadFileRequest{Path: "/home/user/a/b"})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := recvAll(rd.Recv, func(r *guestv1.ReadFileResponse) { got = append(got, r.GetData()...) }); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(content), err)
	}
	_, err = c.files.StatFile(ctx, &guestv1.StatFileRequest{Path: "../../etc/passwd"})
	if status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	_, err = c.files.RemoveFile(ctx, &guestv1.RemoveFileRequest{Path: "/etc/passwd"})
	if status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
}

func leases(t *testing.T, ctx context.Context, c *client) {
	st, _ := start(t, ctx, c, &guestv1.ProcessStart{Cmd: "covey-lease", Args: []string{"--", "sh", "-c", "echo held; read x; exit 3"}})
	if r, err := st.Recv(); err != nil || string(r.GetOutput().GetData()) != "held\n" {
		t.Fatalf("%v, %v", r, err)
	}
	if r, err := c.GetMetrics(ctx, &guestv1.GetMetricsRequest{}); err != nil || r.GetKeepAliveHolders() != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if err := st.Send(&guestv1.ExecStreamRequest{Frame: &guestv1.ExecStreamRequest_CloseStdin{CloseStdin: &guestv1.CloseStdin{}}}); err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || r.GetExited().GetExitCode() != 3 {
		t.Errorf("%v, %v", r, err)
	}
	for ctx.Err() == nil {
		if r, err := c.GetMetrics(ctx, &guestv1.GetMetricsRequest{}); err != nil || r.GetKeepAliveHolders() == 0 {
			return
		}
	}
	t.Error("the lease did not end")
}

func freezes(t *testing.T, ctx context.Context, c *client) {
	frozen := func(ms uint32) {
		t.Helper()
		if _, err := c.Quiesce(ctx, &guestv1.QuiesceRequest{MaxFrozenMs: ms}); err != nil {
			t.Fatal(err)
		}
	}
	frozen(60_000)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := c.Exec(short, &guestv1.ExecRequest{Cmd: "touch", Args: []string{"during"}})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a write while it is frozen: %v", err)
	}
	if _, err := c.Quiesce(ctx, &guestv1.QuiesceRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("frozen twice: %v", err)
	}
	for range 2 {
		if _, err := c.Thaw(ctx, &guestv1.ThawRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	c.sh(ctx, t, "", "touch after")
	frozen(300)
	c.sh(ctx, t, "", "touch by-itself")
	if _, err := c.Quiesce(ctx, &guestv1.QuiesceRequest{SyncOnly: true}); err != nil {
		t.Error(err)
	}
}

func runsOut(t *testing.T, ctx context.Context, c *client) {
	r, err := c.Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", "tail /dev/zero; echo code $?"}})
	if err != nil || !r.GetUsage().GetOomKilled() || r.GetStdout() != "code 137\n" {
		t.Errorf("%v, %v", r, err)
	}
	r, err = c.Exec(ctx, &guestv1.ExecRequest{Cmd: "true"})
	if err != nil || r.GetUsage().GetOomKilled() || r.GetExitCode() != 0 {
		t.Errorf("afterwards: %v, %v", r, err)
	}
	if g, err := c.GetMetrics(ctx, &guestv1.GetMetricsRequest{}); err != nil || g.GetOomKills() == 0 {
		t.Errorf("%v, %v", g, err)
	}
}

func guestdDies(t *testing.T, ctx context.Context, m *machine, c *client) {
	// What outlives its shell is init's: it must be waited for there, and not by guestd.
	const count = "$(grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)"
	c.sh(ctx, t, "", "for i in 1 2 3; do (sleep 0.1 &) ; done; sleep 0.3")
	if zombies := c.sh(ctx, t, "", "i=0; while n="+count+"; [ $n != 0 ] && [ $i -lt 50 ]; do i=$((i+1)); sleep 0.1; done; echo $n"); zombies != "0" {
		t.Errorf("%s zombies", zombies)
	}
	_, err := c.Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", User: "root", Args: []string{"-c", "kill -9 $PPID"}})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
	c = m.connect(ctx)
	if h, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil || h.GetSandboxId() != "sb_first" {
		t.Errorf("%v, %v", h, err)
	}
	if out := c.sh(ctx, t, "", "echo $IDENTITY"); out != "first" {
		t.Errorf("%q", out)
	}
}

func clones(t *testing.T, ctx context.Context, m *machine) {
	c := m.connect(ctx)
	st, id := start(t, ctx, c, &guestv1.ProcessStart{Cmd: "/bin/sh", Args: []string{"-c", "echo begun; read line; echo $line; exit 4"}})
	if r, err := st.Recv(); err != nil || string(r.GetOutput().GetData()) != "begun\n" {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := c.Quiesce(ctx, &guestv1.QuiesceRequest{}); err != nil { // it restores frozen
		t.Fatal(err)
	}
	m.save()
	memory := filepath.Join(m.dir, "memory")
	copyFile(t, memory, memory+".kept")
	random := map[string]bool{}
	for i := range 2 {
		copyFile(t, memory+".kept", memory)
		began := time.Now()
		m.restore()
		c := m.connect(ctx)
		r := restored(t, ctx, c, fmt.Sprint("clone", i), time.Now())
		random[c.sh(ctx, t, "", "head -c 16 /dev/urandom | hexdump -C; cat /proc/sys/kernel/random/uuid")] = true
		t.Logf("the first command was answered %v after the restore", time.Since(began).Round(time.Millisecond))
		if r.GetStreamsEnded() != 1 {
			t.Errorf("%d streams were ended", r.GetStreamsEnded())
		}
		if out := c.sh(ctx, t, "", "hostname; echo $IDENTITY; touch thawed"); out != fmt.Sprintf("host-clone%d\nclone%d", i, i) {
			t.Errorf("%q", out)
		}
		goesOn(t, ctx, c, id)
		if i == 1 {
			endsByItself(t, ctx, m, c)
		}
		m.kill()
	}
	if len(random) != 2 {
		t.Errorf("the clones' randomness is the same: %v", random)
	}
}

// goesOn attaches to the process whose stream a restore ended.
func goesOn(t *testing.T, ctx context.Context, c *client, id string) {
	t.Helper()
	st, err := c.ExecStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*guestv1.ExecStreamRequest{
		{Frame: &guestv1.ExecStreamRequest_Attach{Attach: &guestv1.ProcessAttach{ProcessId: id}}},
		{Frame: &guestv1.ExecStreamRequest_Stdin{Stdin: []byte("still here\n")}},
	} {
		if err := st.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	out := ""
	err = recvAll(st.Recv, func(r *guestv1.ExecStreamResponse) {
		out += string(r.GetOutput().GetData())
		if e := r.GetExited(); e != nil {
			out += fmt.Sprint(e.GetExitCode())
		}
	})
	if err != nil || out != "begun\nstill here\n4" {
		t.Errorf("%q, %v", out, err)
	}
}

// endsByItself shuts the guest down and checks that the VM has ended and that its filesystem is clean.
func endsByItself(t *testing.T, ctx context.Context, m *machine, c *client) {
	t.Helper()
	if _, err := c.Shutdown(ctx, &guestv1.ShutdownRequest{}); err != nil && status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	select {
	case err := <-m.exited:
		m.exited <- err
	case <-ctx.Done():
		t.Error("the VM goes on")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}
