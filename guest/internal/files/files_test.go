package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/guest/internal/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testUID, testGroup = 54321, 54400

// newActor makes an unprivileged actor with a home, and root.
func newActor(t *testing.T) (a, root *Actor, home string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("files are used as other users: needs root")
	}
	dir := t.TempDir()
	home = filepath.Join(dir, "home")
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711), os.Mkdir(home, 0o755), os.Chown(home, testUID, testUID)); err != nil {
		t.Fatal(err)
	}
	user := &account.User{Name: "user", UID: testUID, GID: testUID, Groups: []int{testGroup}, Home: home}
	return NewActor(user), NewActor(&account.User{Name: "root", Home: "/root"}), home
}

func put(t *testing.T, a *Actor, p, content string, o WriteOptions) (File, error) {
	t.Helper()
	w, err := a.Create(p, o)
	if err != nil {
		return File{}, err
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	return w.Commit()
}

func get(t *testing.T, a *Actor, p string) (string, error) {
	t.Helper()
	f, _, err := a.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// must fails the test for an error of a call that returns a value.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries := must[[]os.DirEntry](t)(os.ReadDir(dir))
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestPathsThatClimbOutAreRefused(t *testing.T) {
	a := NewActor(&account.User{UID: testUID, Home: "/home/user"})
	for _, p := range []string{"", "..", "a/../..", "../user/x", "/..", "/a/../../etc", "a\x00b", strings.Repeat("x/", 2048)} {
		var e *PathError
		if got, err := a.Resolve("path", p); !errors.As(err, &e) || e.Field() != "path" {
			t.Errorf("%.40q: %q, %v", p, got, err)
		}
	}
	for p, want := range map[string]string{
		"a": "/home/user/a", ".": "/home/user", "a/../b": "/home/user/b", "/": "/", "/a//b/.": "/a/b", "/a/../b": "/b", "..a": "/home/user/..a",
	} {
		if got, err := a.Resolve("path", p); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", p, got, err, want)
		}
	}
}

func FuzzResolvedPathsAreCleanAndBelowTheHome(f *testing.F) {
	for _, p := range []string{"a", "../x", "/..", "a/../..", "./a//b", "\x00"} {
		f.Add(p)
	}
	a := NewActor(&account.User{UID: testUID, Home: "/home/user"})
	f.Fuzz(func(t *testing.T, p string) {
		got, err := a.Resolve("path", p)
		if err != nil {
			return
		}
		if got != filepath.Clean(got) || !filepath.IsAbs(got) || (!filepath.IsAbs(p) && !within("/home/user", got)) {
			t.Errorf("%q became %q", p, got)
		}
	})
}

func TestTheKernelDecidesWhatTheActorMayDo(t *testing.T) {
	a, root, home := newActor(t)
	dir := filepath.Dir(home)
	secret, grouped := filepath.Join(dir, "secret"), filepath.Join(dir, "grouped")
	for _, f := range []struct {
		p    string
		mode os.FileMode
		gid  int
	}{{secret, 0o600, 0}, {grouped, 0o640, testGroup}} {
		if err := errors.Join(os.WriteFile(f.p, []byte("content"), f.mode), os.Chown(f.p, 0, f.gid)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := get(t, a, secret); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another's file: %v", err)
	}
	if s, err := get(t, a, grouped); s != "content" || err != nil {
		t.Errorf("a file of its group: %q, %v", s, err)
	}
	if s, err := get(t, root, secret); s != "content" || err != nil {
		t.Errorf("as root: %q, %v", s, err)
	}
	// What looks at the effective user or at capabilities, and not at the filesystem's.
	for _, p := range []string{"/proc/1/environ", "/proc/sys/kernel/hostname"} {
		w, err := a.Create(p, WriteOptions{Append: true})
		if err == nil {
			w.Abort()
		}
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", p, err)
		}
	}
	for what, err := range map[string]error{
		"write":  second(put(t, a, filepath.Join(dir, "new"), "x", WriteOptions{})),
		"mkdir":  second(a.MakeDirectory(filepath.Join(dir, "newdir"), 0)),
		"move":   second(a.Move(secret, filepath.Join(home, "mine"), false)),
		"remove": a.Remove(secret, true),
		"list":   second(a.List("/root", ListOptions{Depth: 1, Limit: 10, Bytes: 1000})),
		"watch":  a.Watch(context.Background(), secret, false, nil, nil),
	} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if euid := os.Geteuid(); euid != 0 {
		t.Errorf("this thread is %d afterwards", euid)
	}
}

func second[T any](_ T, err error) error { return err }

func TestThreadsAreRootAgainAfterwards(t *testing.T) {
	a, _, home := newActor(t)
	for range 200 {
		if _, err := a.Stat(home); err != nil {
			t.Fatal(err)
		}
	}
	tasks := must[[]os.DirEntry](t)(os.ReadDir("/proc/self/task"))
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		if err == nil && !strings.Contains(string(b), "Uid:\t0\t0\t0\t0") {
			t.Errorf("thread %s is not root's:\n%s", task.Name(), b)
		}
	}
	if len(tasks) > 100 {
		t.Errorf("%d threads: they are not used again", len(tasks))
	}
}

func TestAFileAppearsWholeOrNotAtAll(t *testing.T) {
	a, root, home := newActor(t)
	f := must[File](t)(put(t, a, "made", "one", WriteOptions{}))
	if f.Path != filepath.Join(home, "made") || f.Mode != 0o644 || f.UID != testUID || f.GID != testUID || f.Size != 3 {
		t.Errorf("%+v", f)
	}
	w := must[*Writer](t)(a.Create("made", WriteOptions{}))
	io.WriteString(w, "half")
	if s, _ := get(t, a, "made"); s != "one" {
		t.Errorf("while it is written: %q", s)
	}
	w.Abort()
	if s, _ := get(t, a, "made"); s != "one" {
		t.Errorf("given up: %q", s)
	}
	if left := names(t, home); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
	if err := os.Chmod(f.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if f := must[File](t)(put(t, root, f.Path, "two", WriteOptions{})); f.Mode != 0o755 || f.UID != testUID {
		t.Errorf("replaced by root: %+v", f)
	}
	if f := must[File](t)(put(t, a, "made", "three", WriteOptions{Mode: 0o600})); f.Mode != 0o600 {
		t.Errorf("mode: %+v", f)
	}
	must[File](t)(put(t, a, "made", "+four", WriteOptions{Append: true}))
	if s, _ := get(t, a, "made"); s != "three+four" {
		t.Errorf("appended: %q", s)
	}
	must[File](t)(put(t, a, "x/y/deep", "", WriteOptions{MakeParents: true}))
	if st := must[os.FileInfo](t)(os.Stat(filepath.Join(home, "x/y"))); st.Sys().(*syscall.Stat_t).Uid != testUID {
		t.Errorf("a parent belongs to %d", st.Sys().(*syscall.Stat_t).Uid)
	}
}

func TestALinkIsWrittenThroughAndItsTargetsPermissionsCount(t *testing.T) {
	a, _, home := newActor(t)
	outside := filepath.Join(filepath.Dir(home), "outside")
	if err := errors.Join(os.WriteFile(outside, nil, 0o644), os.Symlink("../outside", home+"/out"), os.Symlink("later", home+"/dangling"), os.Symlink("loop", home+"/loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t, a, "out", "x", WriteOptions{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("through a link to another's: %v", err)
	}
	if f, err := put(t, a, "dangling", "x", WriteOptions{}); err != nil || f.Path != home+"/later" {
		t.Errorf("through a link to nothing: %+v, %v", f, err)
	}
	if _, err := put(t, a, "loop", "x", WriteOptions{}); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("through a loop: %v", err)
	}
	// A file that may not be written is not replaced either, although the directory would allow it.
	if err := os.WriteFile(home+"/roots", []byte("keep"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := put(t, a, "roots", "x", WriteOptions{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another's file in the own home: %v", err)
	}
}

func TestOnlyRegularFilesAreReadAndWritten(t *testing.T) {
	a, _, home := newActor(t)
	if err := errors.Join(unix.Mkfifo(home+"/pipe", 0o666), os.Chmod(home+"/pipe", 0o666)); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]error{"pipe": ErrNotRegular, ".": ErrIsDirectory, "/dev/zero": ErrNotRegular, "none": fs.ErrNotExist} {
		if _, err := get(t, a, p); !errors.Is(err, want) {
			t.Errorf("read %s: %v", p, err)
		}
		if _, err := put(t, a, p, "", WriteOptions{}); p != "none" && !errors.Is(err, want) {
			t.Errorf("write %s: %v", p, err)
		}
	}
}

func TestASectionIsReadFromAnOffsetOn(t *testing.T) {
	a, _, _ := newActor(t)
	must[File](t)(put(t, a, "f", "0123456789", WriteOptions{}))
	for _, c := range []struct {
		offset, limit int64
		want          string
	}{{0, 0, "0123456789"}, {3, 0, "3456789"}, {3, 2, "34"}, {8, 5, "89"}, {20, 0, ""}} {
		f, _, err := a.Open("f")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(must[io.Reader](t)(Section(f, c.offset, c.limit)))
		if string(b) != c.want || err != nil {
			t.Errorf("%d+%d: %q, %v", c.offset, c.limit, b, err)
		}
		f.Close()
	}
}

func TestDirectoriesAreMadeMovedAndRemoved(t *testing.T) {
	a, _, home := newActor(t)
	f := must[File](t)(a.MakeDirectory("a/b", 0o700))
	if f.Type != fs.ModeDir || f.Mode != 0o700 || f.UID != testUID {
		t.Errorf("%+v", f)
	}
	if f := must[File](t)(a.MakeDirectory("a/b", 0o755)); f.Mode != 0o700 {
		t.Errorf("made again: %+v", f)
	}
	must[File](t)(put(t, a, "a/b/f", "f", WriteOptions{}))
	must[File](t)(put(t, a, "g", "g", WriteOptions{}))
	if _, err := a.MakeDirectory("g", 0); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("over a file: %v", err)
	}
	if _, err := a.Move("g", "a/b/f", false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	must[File](t)(a.Move("g", "a/b/f", true))
	if s, _ := get(t, a, "a/b/f"); s != "g" {
		t.Errorf("after the move: %q", s)
	}
	for what, c := range map[string]struct{ err, want error }{
		"a missing source": {second(a.Move("none", "h", false)), fs.ErrNotExist},
		"into itself":      {second(a.Move("a", "a/b/c", false)), syscall.EINVAL},
		"elsewhere":        {second(a.Move("a/b/f", "/dev/shm/covey-test", false)), syscall.EXDEV},
		"not empty":        {a.Remove("a", false), syscall.ENOTEMPTY},
		"missing":          {a.Remove("none", true), fs.ErrNotExist},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	var e *PathError
	if err := a.Remove("/", true); !errors.As(err, &e) {
		t.Errorf("remove /: %v", err)
	}
	if err := a.Remove("a", true); err != nil || len(names(t, home)) != 0 {
		t.Errorf("%v, left %q", err, names(t, home))
	}
}

func TestStatTellsALinkFromItsTarget(t *testing.T) {
	a, _, home := newActor(t)
	must[File](t)(put(t, a, "f", "content", WriteOptions{Mode: 0o640}))
	if err := os.Symlink("f", home+"/link"); err != nil {
		t.Fatal(err)
	}
	if f := must[File](t)(a.Stat("link")); f.Type != fs.ModeSymlink || f.SymlinkTarget != "f" || f.Name() != "link" {
		t.Errorf("%+v", f)
	}
	if f := must[File](t)(a.Stat("f")); f.Type != 0 || f.Mode != 0o640 || f.Size != 7 || time.Since(f.Modified) > time.Minute {
		t.Errorf("%+v", f)
	}
}

func TestAListingComesInPagesThatMissNothing(t *testing.T) {
	a, root, _ := newActor(t)
	var want []string
	for _, d := range []string{"a", "a b", "a.b", "b"} { // bytes below and above "/" right after a name
		must[File](t)(a.MakeDirectory(d, 0))
		for i := range 5 {
			must[File](t)(put(t, a, fmt.Sprintf("%s/%d", d, i), "", WriteOptions{}))
		}
	}
	all := must[*Listing](t)(a.List("", ListOptions{Depth: 2, Limit: 1000, Bytes: 1 << 20}))
	for _, f := range all.Files {
		want = append(want, f.Path)
	}
	if len(want) != 24 || all.Next != "" {
		t.Fatalf("%d files, next %q", len(want), all.Next)
	}
	for limit := 1; limit < 8; limit++ {
		var got []string
		for after := ""; ; {
			l := must[*Listing](t)(a.List("", ListOptions{Depth: 2, Limit: limit, Bytes: 1 << 20, After: after}))
			for _, f := range l.Files {
				got = append(got, f.Path)
			}
			if after = l.Next; after == "" {
				break
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("pages of %d: %q", limit, got)
		}
	}
	if l := must[*Listing](t)(a.List("", ListOptions{Depth: 1, Limit: 1000, Bytes: 150})); len(l.Files) != 1 && len(l.Files) != 2 || l.Next == "" {
		t.Errorf("a page of few bytes has %d files", len(l.Files))
	}
	if err := root.do(func() error { return os.Mkdir(a.home()+"/closed", 0o700) }); err != nil {
		t.Fatal(err)
	}
	if l := must[*Listing](t)(a.List("", ListOptions{Depth: 2, Limit: 1000, Bytes: 1 << 20})); len(l.Files) != 25 {
		t.Errorf("with a directory that may not be read: %d files", len(l.Files))
	}
	var e *PathError
	if _, err := a.List("a", ListOptions{Depth: 1, Limit: 1, Bytes: 1, After: "/etc/passwd"}); !errors.As(err, &e) {
		t.Errorf("a foreign page token: %v", err)
	}
}

func TestAWatchTellsWhatHappensBelowIt(t *testing.T) {
	a, _, home := newActor(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ready, events, ended := make(chan struct{}), make(chan Event, 100), make(chan error, 1)
	go func() {
		ended <- a.Watch(ctx, ".", true, func() error { close(ready); return nil }, func(e Event) error { events <- e; return nil })
	}()
	<-ready
	expect := func(kind EventType, p string) {
		t.Helper()
		for {
			select {
			case e := <-events:
				if strings.HasPrefix(filepath.Base(e.Path), tempPrefix) {
					t.Errorf("event %d of %s, which is no file of the user's", e.Type, e.Path)
				}
				if e.Type == kind && e.Path == filepath.Join(home, p) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no event %d of %s", kind, p)
			}
		}
	}
	must[File](t)(put(t, a, "f", "x", WriteOptions{}))
	expect(Created, "f")
	must[File](t)(put(t, a, "f", "y", WriteOptions{Append: true}))
	expect(Written, "f")
	if err := os.Chmod(home+"/f", 0o600); err != nil {
		t.Fatal(err)
	}
	expect(Attributes, "f")
	must[File](t)(a.Move("f", "g", false))
	expect(Renamed, "f")
	expect(Created, "g")
	if err := a.Remove("g", false); err != nil {
		t.Fatal(err)
	}
	expect(Removed, "g")
	must[File](t)(put(t, a, "new/dir/deep", "x", WriteOptions{MakeParents: true}))
	expect(Created, "new")
	expect(Created, "new/dir/deep")
	must[File](t)(put(t, a, "new/dir/deep", "y", WriteOptions{Append: true}))
	expect(Written, "new/dir/deep")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
}

func TestLargeFilesAreWrittenAsTheyAre(t *testing.T) {
	a, _, _ := newActor(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	w := must[*Writer](t)(a.Create("large", WriteOptions{}))
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 70_001)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	must[File](t)(w.Commit())
	if s, err := get(t, a, "large"); s != string(content) || err != nil {
		t.Errorf("%d bytes came back, %v", len(s), err)
	}
}
