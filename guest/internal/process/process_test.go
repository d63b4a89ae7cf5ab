package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/account"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const testUID = 54321

// newTable makes a table whose default user is an unprivileged one with a home.
func newTable(t *testing.T) *Table {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("commands are started as other users: needs root")
	}
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	passwd := fmt.Sprintf("root:x:0:0::/root:/bin/sh\nuser:x:%d:%d::%s:/bin/sh\n", testUID, testUID, home)
	write(t, filepath.Join(dir, "passwd"), passwd, 0o644)
	write(t, filepath.Join(dir, "group"), fmt.Sprintf("user:x:%d:\nextra:x:54400:user\n", testUID), 0o644)
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chown(home, testUID, testUID)); err != nil {
		t.Fatal(err)
	}
	table, err := NewTable(account.Database{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func sh(script string) Spec { return Spec{Cmd: "/bin/sh", Args: []string{"-c", script}} }

// run runs a command that must start.
func run(t *testing.T, table *Table, s Spec, stdin string) *Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, _, err := table.Run(ctx, s, []byte(stdin))
	if err != nil {
		t.Fatalf("%s %q: %v", s.Cmd, s.Args, err)
	}
	return r
}

// follow collects a process's output from an offset on until it ends.
func follow(t *testing.T, p *Process, from uint64) (out string, gapTo uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var b bytes.Buffer
	err := p.Follow(ctx, from, func(c Chunk) error { b.Write(c.Data); return nil }, func(_, to uint64) error { gapTo = to; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), gapTo
}

func start(t *testing.T, table *Table, s Spec) *Process {
	t.Helper()
	p, err := table.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wait(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(2 * time.Minute):
		t.Fatal("the process does not end")
	}
	return p.Exit()
}

func TestACommandRunsAsTheUserWithItsGroupsHomeAndEnvironment(t *testing.T) {
	table := newTable(t)
	table.SetEnv(map[string]string{"FROM_SANDBOX": "a", "BOTH": "sandbox"})
	s := sh(`id -u; id -G; pwd; echo $HOME $USER $FROM_SANDBOX $BOTH; touch made; ulimit -n >/dev/null`)
	s.Env = map[string]string{"BOTH": "own"}
	r := run(t, table, s, "")
	lines := strings.Split(string(r.Stdout), "\n")
	u, err := table.accounts.Lookup("")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"54321", "54321 54400", u.Home, u.Home + " user a own"}
	for i := range want {
		if lines[i] != want[i] {
			t.Errorf("line %d: %q, want %q", i, lines[i], want[i])
		}
	}
	st, err := os.Stat(filepath.Join(u.Home, "made"))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != testUID {
		t.Errorf("a file that it made: %v, %v", st, err)
	}
	if r := run(t, table, Spec{Cmd: "id", Args: []string{"-u"}, User: "root"}, ""); string(r.Stdout) != "0\n" {
		t.Errorf("as root: %q", r.Stdout)
	}
	if _, err := table.Start(Spec{Cmd: "id", User: "nobody-such"}); !errors.Is(err, account.ErrUnknown) {
		t.Errorf("unknown user: %v", err)
	}
}

func TestACommandThatCannotRunHasAShellsExitCode(t *testing.T) {
	table := newTable(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "plain"), "x", 0o644)
	write(t, filepath.Join(dir, "script"), "#!/no/such/interpreter\n", 0o755)
	write(t, filepath.Join(dir, "noise"), "\x01\x02\x03", 0o755)
	for cmd, code := range map[string]int{
		"no-such-command": 127, filepath.Join(dir, "missing"): 127, filepath.Join(dir, "plain"): 126, dir: 126,
		filepath.Join(dir, "script"): 127, filepath.Join(dir, "noise"): 126, "/root/.": 126,
	} {
		var failed *StartError
		if _, err := table.Start(Spec{Cmd: cmd}); !errors.As(err, &failed) || failed.Code != code || !strings.Contains(failed.Reason, filepath.Base(cmd)) {
			t.Errorf("%s: %v, want code %d", cmd, err, code)
		}
	}
	for _, s := range []Spec{{}, {Cmd: "a\x00b"}, {Cmd: "id", Dir: "relative"}, {Cmd: "id", Args: []string{"\x00"}}, {Cmd: "id", Env: map[string]string{"A=B": ""}}} {
		var f *FieldError
		if _, err := table.Start(s); !errors.As(err, &f) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	var failed *StartError
	if _, err := table.Start(Spec{Cmd: "id", Dir: "/no/such"}); !errors.As(err, &failed) || failed.Code != 126 {
		t.Errorf("working directory: %v", err)
	}
}

func TestInputOfAnySizeIsGivenAndClosed(t *testing.T) {
	table := newTable(t)
	for _, size := range []int{0, 1, pipeBytes, pipeBytes + 1, 900 << 10} {
		in := strings.Repeat("x", size)
		if r := run(t, table, Spec{Cmd: "cat"}, in); string(r.Stdout) != in {
			t.Errorf("%d bytes in, %d out", size, len(r.Stdout))
		}
		if r := run(t, table, Spec{Cmd: "true"}, in); r.Code != 0 {
			t.Errorf("%d bytes that nobody reads: %+v", size, r.Exit)
		}
	}
}

func TestOutputBeyondAMebibyteIsCutAndSaid(t *testing.T) {
	table := newTable(t)
	r := run(t, table, sh("head -c 3000000 /dev/zero; echo err >&2; exit 3"), "")
	if len(r.Stdout) != CaptureBytes || !r.StdoutTruncated || string(r.Stderr) != "err\n" || r.StderrTruncated || r.Code != 3 {
		t.Errorf("%d bytes, %v, %q, %v, %d", len(r.Stdout), r.StdoutTruncated, r.Stderr, r.StderrTruncated, r.Code)
	}
}

func TestTheExitSaysCodeSignalTimeoutAndUsage(t *testing.T) {
	table := newTable(t)
	if r := run(t, table, sh("kill -TERM $$"), ""); r.Code != 143 || r.Signal != "SIGTERM" {
		t.Errorf("killed: %+v", r.Exit)
	}
	s := sh("sleep 100 & sleep 100")
	s.Timeout = 200 * time.Millisecond
	if r := run(t, table, s, ""); r.Code != 137 || r.Signal != "SIGKILL" || !r.TimedOut {
		t.Errorf("timed out: %+v", r.Exit)
	}
	r := run(t, table, sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"), "")
	if r.User+r.System <= 0 || r.Wall < r.User/2 || r.MaxRSS < 100<<10 || r.OOMKilled {
		t.Errorf("usage: %+v", r.Exit)
	}
}

func TestWhatRunsInTheBackgroundIsNeitherAwaitedNorKilledByItsOutput(t *testing.T) {
	table := newTable(t)
	dir := t.TempDir()
	over, mark := filepath.Join(dir, "over"), filepath.Join(dir, "mark")
	// The background waits for what is there only when the command is over.
	r := run(t, table, Spec{Cmd: "/bin/sh", User: "root", Args: []string{"-c", "(until [ -e " + over + " ]; do [ -d " + dir + " ] || exit; sleep 0.1; done; echo late; echo done > " + mark + ") & echo early"}}, "")
	if string(r.Stdout) != "early\n" {
		t.Errorf("output %q", r.Stdout)
	}
	if err := os.WriteFile(over, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); ; <-time.After(10 * time.Millisecond) {
		if b, err := os.ReadFile(mark); err == nil && len(b) > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the background did not survive its output")
		}
	}
}

func TestACallerThatGivesUpDecidesWhatBecomesOfTheCommand(t *testing.T) {
	table := newTable(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, p, err := table.Run(ctx, Spec{Cmd: "sleep", Args: []string{"100"}}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || p == nil || !p.Running() {
		t.Fatalf("%v, %v", p, err)
	}
	p.Kill()
	if e := wait(t, p); e.Signal != "SIGKILL" {
		t.Errorf("%+v", e)
	}
	if err := p.Follow(context.Background(), 0, nil, nil); !errors.Is(err, ErrNotAttachable) {
		t.Errorf("attach: %v", err)
	}
}

func TestAnAttachedClientGetsEveryByteHoweverSlowItReads(t *testing.T) {
	table := newTable(t)
	const size = 8 << 20
	p := start(t, table, sh(fmt.Sprintf("head -c %d /dev/zero; echo end", size)))
	var got uint64
	err := p.Follow(context.Background(), 0, func(c Chunk) error {
		if c.Sequence != got {
			t.Fatalf("chunk at %d after %d bytes", c.Sequence, got)
		}
		if len(c.Data) > chunkBytes {
			t.Fatalf("a chunk of %d bytes", len(c.Data))
		}
		got += uint64(len(c.Data))
		if got < 1<<20 {
			<-time.After(2 * time.Millisecond) // slower than it writes
		}
		l := p.output.(*outputLog)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held > logBytes+2*chunkBytes {
			t.Fatalf("the log holds %d bytes", l.held)
		}
		return nil
	}, func(from, to uint64) error { return fmt.Errorf("gap from %d to %d", from, to) })
	if err != nil || got != size+4 {
		t.Fatalf("%d bytes, %v", got, err)
	}
}

func TestOutputOfSingleBytesCostsLittleMoreThanItsBytes(t *testing.T) {
	l := &outputLog{}
	for i := range 300_000 {
		l.write(false, []byte{byte(i)})
	}
	if len(l.chunks) > 20 {
		t.Errorf("%d chunks", len(l.chunks))
	}
	for i := range 300_000 {
		l.write(i%2 == 0, []byte{byte(i)})
	}
	if l.held > logBytes+2*chunkBytes {
		t.Errorf("the log holds %d", l.held)
	}
}

func TestADetachedProcessIsReplayedFromAnOffsetAndSaysWhatIsLost(t *testing.T) {
	table := newTable(t)
	s := sh("echo 0123456789; echo err >&2; read line; echo got $line")
	s.Detached = true
	p := start(t, table, s)
	ctx, cancel := context.WithCancel(context.Background())
	seen := 0
	err := p.Follow(ctx, 0, func(c Chunk) error {
		if seen += len(c.Data); seen >= 15 {
			cancel()
		}
		return nil
	}, nil)
	if !errors.Is(err, context.Canceled) || !p.Running() || p.Attached() {
		t.Fatalf("%v, running %v, attached %v", err, p.Running(), p.Attached())
	}
	if err := p.Write([]byte("more\n")); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	all, _ := follow(t, p, 0)
	if len(all) != 15+len("got more\n") || !strings.Contains(all, "err\n") {
		t.Errorf("all output: %q", all)
	}
	if rest, gap := follow(t, p, 15); rest != "got more\n" || gap != 0 {
		t.Errorf("from 15: %q, gap to %d", rest, gap)
	}
	if beyond, _ := follow(t, p, 1000); beyond != "" {
		t.Errorf("beyond the end: %q", beyond)
	}
	long := start(t, table, sh("head -c 5000000 /dev/zero"))
	wait(t, long)
	rest, gap := follow(t, long, 10)
	if gap == 0 || gap+uint64(len(rest)) != 5000000 || len(rest) > logBytes || len(rest) < logBytes/2 {
		t.Errorf("%d bytes after a gap to %d", len(rest), gap)
	}
}

func TestANewClientReplacesTheOldOne(t *testing.T) {
	table := newTable(t)
	p := start(t, table, Spec{Cmd: "cat"})
	attached, first := make(chan struct{}), make(chan error, 1)
	go func() {
		first <- p.Follow(context.Background(), 0, func(Chunk) error { close(attached); return nil }, nil)
	}()
	if err := p.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-attached
	second := make(chan string, 1)
	go func() { out, _ := follow(t, p, 0); second <- out }()
	if err := <-first; !errors.Is(err, ErrReplaced) {
		t.Errorf("the first: %v", err)
	}
	p.CloseInput()
	if out := <-second; out != "x" {
		t.Errorf("the second: %q", out)
	}
}

func TestATerminalHasASizeSignalsAndAnEnd(t *testing.T) {
	table := newTable(t)
	s := sh(`stty size; tty | cut -c 1-8; stat -c %u $(tty); trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.05; done`)
	s.Terminal = &Size{Rows: 33, Cols: 101}
	p := start(t, table, s)
	var out bytes.Buffer
	err := p.Follow(context.Background(), 0, func(c Chunk) error {
		if c.Stderr {
			t.Error("a terminal has no standard error of its own")
		}
		out.Write(c.Data)
		if bytes.HasSuffix(out.Bytes(), []byte("ready\r\n")) {
			return p.Resize(Size{44, 55})
		}
		return nil
	}, nil)
	if want := "33 101\r\n/dev/pts\r\n54321\r\nready\r\n44 55\r\n"; err != nil || out.String() != want || p.Exit().Code != 5 {
		t.Errorf("%q, %+v, %v", out.String(), p.Exit(), err)
	}
	if err := start(t, table, Spec{Cmd: "true"}).Resize(Size{1, 1}); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("resize without a terminal: %v", err)
	}
}

func TestASignalReachesTheForegroundJobOfATerminalAlone(t *testing.T) {
	table := newTable(t)
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Skip("needs bash for job control")
	}
	p := start(t, table, Spec{Cmd: "/bin/bash", Terminal: &Size{24, 80}, Args: []string{"-c", "set -m; sleep 100; echo code=$?; exit 7"}})
	again := time.NewTicker(20 * time.Millisecond) // until the job is in the foreground
	defer again.Stop()
	for p.Running() {
		select {
		case <-again.C:
			if foreground(p) != p.PID() {
				_ = p.Signal(unix.SIGTERM)
			}
		case <-p.Done():
		}
	}
	if out, _ := follow(t, p, 0); !strings.Contains(out, "code=143") || p.Exit().Code != 7 {
		t.Errorf("%q, %+v", out, p.Exit())
	}
}

// foreground is the process group that a terminal's keys reach.
func foreground(p *Process) (group int) {
	_ = control(p.terminal, func(fd int) (err error) { group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP); return err })
	return group
}

func TestTheEndOfATerminalsInputIsTheEndOfTheFile(t *testing.T) {
	table := newTable(t)
	p := start(t, table, Spec{Cmd: "cat", Terminal: &Size{24, 80}})
	if err := p.Write([]byte("line\n")); err != nil {
		t.Fatal(err)
	}
	p.CloseInput()
	if e := wait(t, p); e.Code != 0 {
		t.Errorf("%+v", e)
	}
	if out, _ := follow(t, p, 0); out != "line\r\nline\r\n" {
		t.Errorf("%q", out)
	}
}

func TestASignalReachesTheWholeGroupAndNobodyAfterTheEnd(t *testing.T) {
	table := newTable(t)
	p := start(t, table, sh("sleep 100 & sleep 100; wait"))
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, p); e.Signal != "SIGTERM" {
		t.Errorf("%+v", e)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Errorf("after the end: %v", err)
	}
	for end := time.Now().Add(2 * time.Minute); unix.Kill(-p.PID(), 0) != unix.ESRCH; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) { // what is dead is there until init has reaped it
			t.Fatal("something is left of the group")
		}
	}
}

func TestTheListHasTheRunningFirstAndForgetsOldOnes(t *testing.T) {
	table := newTable(t)
	s := Spec{Cmd: "sleep", Args: []string{"100"}, Detached: true, KeepAlive: true}
	running := start(t, table, s)
	for range keepEndedMax + 5 {
		wait(t, start(t, table, Spec{Cmd: "true"}))
	}
	list := table.List()
	if len(list) != keepEndedMax+1 || list[0] != running {
		t.Errorf("%d processes, first %v", len(list), list[0].Spec)
	}
	if n := table.KeepAlive(); n != 1 {
		t.Errorf("%d hold the timer", n)
	}
	running.Kill()
	wait(t, running)
	if n := table.KeepAlive(); n != 0 {
		t.Errorf("%d hold the timer after the end", n)
	}
	for range 12 {
		wait(t, start(t, table, sh("head -c 1000000 /dev/zero")))
	}
	if n := len(table.List()); n > 9 {
		t.Errorf("%d processes with a mebibyte of output each are kept", n)
	}
	if _, err := table.Get("proc_none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestCommandsAreExposedToTheLackOfMemoryAlthoughGuestdIsNot(t *testing.T) {
	table := newTable(t)
	const own = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	write(t, own, "500", 0) // a test may not always lower it
	defer write(t, own, string(before), 0)
	// All of them, from the first moment on, and guestd again afterwards.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if r := run(t, table, sh("(cat /proc/self/oom_score_adj) & cat /proc/self/oom_score_adj; wait"), ""); string(r.Stdout) != "0\n0\n" {
				t.Errorf("its scores are %q", r.Stdout)
			}
		})
	}
	wg.Wait()
	if b, err := os.ReadFile(own); string(b) != "500\n" {
		t.Errorf("guestd's is %q, %v", b, err)
	}
}

func TestOnlyTheKernelsOwnRecordsAreKills(t *testing.T) {
	for record, want := range map[string]bool{
		"3,1021,5140900,-;Out of memory: Killed process 123 (python3) total-vm:1kB":             true,
		"3,1021,5140900,-;Memory cgroup out of memory: Killed process 123 (python3)":            true,
		"11,1021,5140900,-;Out of memory: Killed process 123 (a program wrote this to the log)": false,
		"6,1,0,-;Linux version": false,
		"":                      false,
	} {
		if isKill([]byte(record)) != want {
			t.Errorf("%q: want %v", record, want)
		}
	}
}

func TestIdsAreULIDsInOrderOfTime(t *testing.T) {
	a := newID()
	<-time.After(2 * time.Millisecond)
	b := newID()
	if len(a) != 31 || a >= b || strings.Trim(a[5:], crockford) != "" || a[5] > '7' {
		t.Errorf("%s, then %s", a, b)
	}
}

func TestSignalsAreNamesOrNumbers(t *testing.T) {
	for text, want := range map[string]syscall.Signal{"": 9, "SIGTERM": 15, "term": 15, "2": 2} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"SIGNONE", "0", "65", "-1"} {
		if _, err := ParseSignal(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
