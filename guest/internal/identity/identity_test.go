package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// recorder is a kernel that remembers what was set.
type recorder struct {
	time    time.Time
	entropy []byte
	name    string
}

func (r *recorder) SetTime(t time.Time) (time.Duration, error) { r.time = t; return time.Second, nil }
func (r *recorder) AddEntropy(b []byte) error                  { r.entropy = b; return nil }
func (r *recorder) SetHostname(n string) error                 { r.name = n; return nil }
func (r *recorder) Hostname() (string, error)                  { return r.name, nil }

func valid() *Identity {
	return &Identity{
		Now: time.Unix(1_800_000_000, 0), Entropy: bytes.Repeat([]byte{7}, 64), Hostname: "box-1.local", MachineID: "0123456789ABCDEF0123456789abcdef",
		Nameservers: []string{"1.1.1.1", "8.8.8.8"},
	}
}

func content(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnIdentityIsInTheKernelAndInTheFiles(t *testing.T) {
	dir, kernel := t.TempDir(), &recorder{}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("127.0.0.1 localhost\n127.0.1.1\tbefore\n10.0.0.1 mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := Open(dir, kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	id := valid()
	if step, err := g.SetClockAndEntropy(id); step != time.Second || err != nil || !kernel.time.Equal(id.Now) || len(kernel.entropy) != 64 {
		t.Errorf("%v, %v, %+v", step, err, kernel)
	}
	a, err := g.SetNames(id)
	if err != nil || a.Hostname != "box-1.local" || a.MachineID != "0123456789abcdef0123456789abcdef" {
		t.Errorf("%+v, %v", a, err)
	}
	for name, want := range map[string]string{
		"hostname": "box-1.local\n", "machine-id": "0123456789abcdef0123456789abcdef\n", "resolv.conf": "nameserver 1.1.1.1\nnameserver 8.8.8.8\n",
		"hosts": "127.0.0.1 localhost\n10.0.0.1 mine\n127.0.1.1\tbox-1.local\n",
	} {
		if got := content(t, dir, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// What is empty is kept, and a shorter name leaves nothing of the longer one.
	if a, err := g.SetNames(&Identity{Hostname: "x"}); err != nil || a.MachineID != "0123456789abcdef0123456789abcdef" {
		t.Errorf("%+v, %v", a, err)
	}
	if got := content(t, dir, "hostname") + content(t, dir, "hosts"); got != "x\n127.0.0.1 localhost\n10.0.0.1 mine\n127.0.1.1\tx\n" {
		t.Errorf("%q", got)
	}
	if got := content(t, dir, "resolv.conf"); !strings.Contains(got, "8.8.8.8") {
		t.Errorf("resolv.conf: %q", got)
	}
}

func TestAHostsFileOfAnySizeKeepsItsLines(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("10.0.0.1 some-host-name\n", 500)
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(long), 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := Open(dir, &recorder{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.SetNames(&Identity{Hostname: "x"}); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir, "hosts"); got != long+"127.0.1.1\tx\n" {
		t.Errorf("%d bytes of %d", len(got), len(long))
	}
}

func TestAnIdentityThatIsNotLegalNamesTheField(t *testing.T) {
	for want, change := range map[string]func(*Identity){
		"now_unix_ns": func(i *Identity) { i.Now = time.Unix(0, 0) },
		"entropy":     func(i *Identity) { i.Entropy = i.Entropy[:31] },
		"hostname":    func(i *Identity) { i.Hostname = "-x" },
		"machine_id":  func(i *Identity) { i.MachineID = "xyz" },
		"nameservers": func(i *Identity) { i.Nameservers = []string{"1.1.1.1\noptions x"} },
	} {
		id := valid()
		change(id)
		var e *FieldError
		if err := id.Validate(); !errors.As(err, &e) || e.Field() != want {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, name := range []string{"a..b-", ".a", strings.Repeat("a", 65), "a b", "a\n"} {
		if isHostname(name) {
			t.Errorf("%q was taken", name)
		}
	}
	if err := valid().Validate(); err != nil {
		t.Error(err)
	}
}
