package launch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/launch"
)

func TestMain(m *testing.M) {
	if file := os.Getenv("LAUNCH_TEST_AGENT"); file != "" {
		formerAgent(file)
		return
	}
	goleak.VerifyTestMain(m)
}

const user = 231234

// spec runs a shell script, with a directory of its own at RoomAt.
func spec(t *testing.T, script string) launch.Spec {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests start processes of another user: run them as root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	return launch.Spec{Path: "/bin/sh", Args: []string{"-c", script}, UID: user, GID: user, RoomAt: dir,
		Binds: append(launch.System(), launch.Bind{Path: dir, Writable: true})}
}

func start(t *testing.T, s launch.Spec) *launch.Process {
	t.Helper()
	p, err := launch.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		p.Close()
	})
	return p
}

// ended waits for the end and returns what the process wrote.
func ended(t *testing.T, p *launch.Process) string {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatalf("the process has not ended; it says %q", p.Words())
	}
	return p.Words()
}

func TestAProcessHasNoPrivileges(t *testing.T) {
	out := ended(t, start(t, spec(t, "ls /proc; id -u; id -g; id -G; echo pid $$")))
	want := fmt.Sprintf("%d\n%d\n%d\npid 1", user, user, user)
	if !strings.HasSuffix(out, want) {
		t.Errorf("it says %q, want %q at the end", out, want)
	}
	p := start(t, spec(t, "exec sleep 1000"))
	status := read(t, fmt.Sprintf("/proc/%d/status", p.PID()))
	for _, line := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(status, line+":\t0000000000000000\n") {
			t.Errorf("%s is not empty in\n%s", line, status)
		}
	}
	if !strings.Contains(status, "NoNewPrivs:\t1\n") {
		t.Error("new privileges can be gained")
	}
}

func TestAProcessOfRootHasNoCapabilities(t *testing.T) {
	s := spec(t, "chown 1 /usr; exec sleep 1000")
	s.UID, s.GID = 0, 0
	p := start(t, s)
	if status := read(t, fmt.Sprintf("/proc/%d/status", p.PID())); !strings.Contains(status, "CapEff:\t0000000000000000\n") {
		t.Errorf("root kept capabilities:\n%s", status)
	}
}

func TestAProcessSeesOnlyWhatIsBound(t *testing.T) {
	s := spec(t, "")
	s.Args[1] = "ls /; touch /usr/x /x; touch " + s.RoomAt + "/mine; ls /etc; ls /dev"
	s.Devices = []string{"/dev/null"}
	out := ended(t, start(t, s))
	top := strings.Split(filepath.Clean(s.RoomAt), "/")[1]
	for _, legal := range []string{"bin", "lib", "lib64", "usr", "etc", "dev", top} {
		out = strings.Replace(out, legal+"\n", "", 1)
	}
	want := "touch: cannot touch '/usr/x': Read-only file system\ntouch: cannot touch '/x': Read-only file system\nld.so.cache\nnull"
	if out != want {
		t.Errorf("it says %q, want %q", out, want)
	}
	if _, err := os.Stat(filepath.Join(s.RoomAt, "mine")); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(s.RoomAt); len(list) != 1 {
		t.Errorf("the room has left %v in %s", list, s.RoomAt)
	}
}

func TestAProcessInheritsFiles(t *testing.T) {
	s := spec(t, "read x <&3; echo got $x")
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s.Files = []*os.File{file}
	if out := ended(t, start(t, s)); out != "got hello" {
		t.Errorf("it says %q", out)
	}
}

func TestTheAgentKeepsItsOwnAttributes(t *testing.T) {
	// On the main thread as well, which is the one that /proc/self shows.
	before := attributes(t)
	for range 8 {
		ended(t, start(t, spec(t, "true")))
	}
	if after := attributes(t); before != after {
		t.Errorf("before %s\nafter %s", before, after)
	}
}

func attributes(t *testing.T) string {
	t.Helper()
	var out []string
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, link)
	}
	for _, line := range strings.Split(read(t, "/proc/self/status"), "\n") {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNew") {
			out = append(out, line)
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(append(out, cwd, read(t, "/proc/self/cgroup")), " ")
}

func TestAProcessStandsInItsCgroups(t *testing.T) {
	var want []string
	var s = spec(t, "exec sleep 1000")
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		var st unix.Stat_t
		procs := filepath.Join(root, "cgroup.procs")
		if unix.Stat(procs, &st) != nil {
			continue
		}
		dir, err := os.MkdirTemp(root, "covey-launch-test-")
		if err != nil {
			t.Logf("%s: %v", root, err)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		s.Cgroups = append(s.Cgroups, filepath.Join(dir, "cgroup.procs"))
		want = append(want, dir)
	}
	if len(want) == 0 {
		t.Skip("no cgroup can be made on this machine: /sys/fs/cgroup is not mounted or not writable")
	}
	p := start(t, s)
	for _, dir := range want {
		if got := strings.TrimSpace(read(t, dir+"/cgroup.procs")); got != strconv.Itoa(p.PID()) {
			t.Errorf("%s holds %q, want %d", dir, got, p.PID())
		}
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheEndIsSeenWithItsReason(t *testing.T) {
	p := start(t, spec(t, "echo bad luck >&2; exit 7"))
	words := ended(t, p)
	if e := p.Exit(); e.Code != 7 || e.Signal != 0 || e.Reason != "the VMM exited with code 7" || words != "bad luck" {
		t.Errorf("it ended with %+v and %q", e, words)
	}
	p = start(t, spec(t, "exec sleep 1000"))
	if e := p.Exit(); e != (vmm.Exit{}) {
		t.Errorf("while it runs Exit says %+v", e)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := p.Exit(); e.Code != -1 || e.Signal != 9 || e.Reason != "the VMM was killed by signal 9 (SIGKILL)" {
		t.Errorf("killed: %+v", e)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Error("killing it again:", err)
	}
}

func TestAFloodOfWordsIsBoundedAndDoesNotBlock(t *testing.T) {
	p := start(t, spec(t, "i=0; while [ $i -lt 20000 ]; do echo 0123456789 || true; i=$((i+1)); done 2>/dev/null; exit 3"))
	if words := ended(t, p); len(words) == 0 || len(words) > 4096 {
		t.Errorf("%d bytes of last words", len(words))
	}
	if p.Exit().Code != 3 {
		t.Errorf("it ended with %+v", p.Exit())
	}
}

func TestFilesCannotGrowBeyondTheirLimit(t *testing.T) {
	s := spec(t, "")
	s.Args[1] = "head -c 5000 /usr/bin/sh > " + s.RoomAt + "/big; echo code $?"
	s.MaxFile = 4096
	if out := ended(t, start(t, s)); !strings.HasSuffix(out, "File too large\ncode 1") {
		t.Errorf("it says %q", out)
	}
	if st, err := os.Stat(filepath.Join(s.RoomAt, "big")); err != nil || st.Size() != 4096 {
		t.Errorf("the file: %v, %v", st, err)
	}
}

func TestAFailedStartNamesTheStep(t *testing.T) {
	for want, change := range map[string]func(*launch.Spec){
		"execute /bin/nothing: no such file or directory":                          func(s *launch.Spec) { s.Path = "/bin/nothing" },
		"open the network namespace: open /nowhere: no such file":                  func(s *launch.Spec) { s.NetNS = "/nowhere" },
		"build the room: bind /nowhere: lstat /nowhere: no such file or directory": func(s *launch.Spec) { s.Binds = []launch.Bind{{Path: "/nowhere"}} },
		"the program must be an absolute path, got \"sh\"":                         func(s *launch.Spec) { s.Path = "sh" },
		"TAP device tap0: no network namespace was given":                          func(s *launch.Spec) { s.TAP = "tap0" },
		"cgroup /nowhere: no such file or directory":                               func(s *launch.Spec) { s.Cgroups = []string{"/nowhere/tasks"} },
		"device /dev/nowhere: no such file or directory":                           func(s *launch.Spec) { s.Devices = []string{"/dev/nowhere"} },
	} {
		s := spec(t, "true")
		change(&s)
		if _, err := launch.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestManyStartAtOnce(t *testing.T) {
	errs := make(chan error)
	const n = 16
	s := spec(t, "exit 5")
	for range n {
		go func() {
			p, err := launch.Start(t.Context(), s)
			if err == nil {
				<-p.Done()
				if p.Exit().Code != 5 {
					err = errors.New(p.Exit().Reason)
				}
				p.Close()
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// handle is what the former agent leaves in its file.
type handle struct {
	PID   int
	Start uint64
}

// formerAgent starts a process, notes it down, and ends.
func formerAgent(file string) {
	var s launch.Spec
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	var p *launch.Process
	if err == nil {
		p, err = launch.Start(context.Background(), s)
	}
	if err == nil {
		b, _ = json.Marshal(handle{p.PID(), p.StartTime()})
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestAProcessOutlivesItsAgentAndIsOpenedAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "handle")
	b, _ := json.Marshal(spec(t, "echo still here; exec sleep 1000"))
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LAUNCH_TEST_AGENT="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var h handle
	if err := json.Unmarshal([]byte(read(t, file)), &h); err != nil {
		t.Fatal(err)
	}
	if _, err := launch.Reopen(h.PID, h.Start+1); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("reopened with another start time: %v", err)
	}
	p, err := launch.Reopen(h.PID, h.Start)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for deadline := time.Now().Add(time.Minute); p.Words() != "still here"; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("its words are %q", p.Words())
		}
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := p.Exit(); e.Code != -1 || e.Time.IsZero() || e.Reason == "" {
		t.Errorf("it ended with %+v", e)
	}
	if _, err := launch.Reopen(h.PID, h.Start); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("reopened after its end: %v", err)
	}
}

func TestCloseLeavesTheProcessAlone(t *testing.T) {
	p, err := launch.Start(t.Context(), spec(t, "exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	again, err := launch.Reopen(p.PID(), p.StartTime())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(b)) + "\n"
}

func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	s := launch.Spec{Path: "/bin/true", UID: user, GID: user, RoomAt: dir, Binds: append(launch.System(), launch.Bind{Path: dir, Writable: true})}
	runtime.GC()
	for b.Loop() {
		p, err := launch.Start(context.Background(), s)
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		p.Close()
	}
}

func TestPathsAndDevicesAreSeenElsewhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("stable\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "cat /here/name; echo x > /null && ls /dev")
	s.Binds = append(s.Binds, launch.Bind{Path: file, At: "/here/name"}, launch.Bind{Path: "/dev/null", At: "/null"})
	if out := ended(t, start(t, s)); out != "stable\nls: cannot access '/dev': No such file or directory" {
		t.Errorf("it says %q", out)
	}
}

func TestStandardOutputGoesElsewhere(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := spec(t, "echo out; echo words >&2")
	s.Stdout = w
	words := ended(t, start(t, s))
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil || string(out) != "out\n" || words != "words" {
		t.Errorf("standard output got %q (%v), the last words are %q", out, err, words)
	}
}
