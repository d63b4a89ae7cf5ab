package preload

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func build(t *testing.T) string {
	t.Helper()
	path, err := Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestObjectIsBuiltOnceForEachVersionOfItsSource(t *testing.T) {
	dir := t.TempDir()
	first, err := Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(second)
	if err != nil {
		t.Fatal(err)
	}
	if first != second || !os.SameFile(before, after) {
		t.Errorf("built again: %s, then %s", first, second)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d entries are left in the directory (%v), want the object alone", len(entries), err)
	}
}

func TestWithoutMemoryFileTheObjectChangesNothing(t *testing.T) {
	cmd := exec.Command("cat", "/proc/self/cmdline")
	cmd.Env = []string{"LD_PRELOAD=" + build(t)}
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "cat\x00") {
		t.Errorf("cat answered %q, %v", out, err)
	}
}

func TestWhatIsWrongEndsTheProcessWithOneLine(t *testing.T) {
	object := build(t)
	for name, c := range map[string]struct {
		env  []string
		want string
	}{
		"closed descriptor": {[]string{"COVEY_MEM_FD=77"}, "COVEY_MEM_FD=77 is not an open descriptor: Bad file descriptor"},
		"no number":         {[]string{"COVEY_MEM_FD=x"}, "COVEY_MEM_FD=x is not an open descriptor"},
		"no socket":         {[]string{"COVEY_MEM_FD=1"}, "COVEY_PAGER_SOCKET is not set"},
		"long socket": {[]string{"COVEY_MEM_FD=1", "COVEY_PAGER_SOCKET=/" + strings.Repeat("a", 107)},
			"COVEY_PAGER_SOCKET is too long for a Unix socket's path (at most 107 bytes)"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("true")
			cmd.Env = append(c.env, "LD_PRELOAD="+object)
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != 127 {
				t.Errorf("exit code %d, want 127", got)
			}
			if want := "covey-preload: " + c.want + "\n"; string(out) != want {
				t.Errorf("it says %q, want %q", out, want)
			}
		})
	}
}
