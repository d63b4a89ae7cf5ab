package preload

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/guest/tsc"
	"github.com/coveyhq/covey/hostagent/internal/pager"
)

const guestMemory = 128 * mib

// missing skips a test that cannot be run here, or fails it where all have to be.
func missing(t *testing.T, sentence string) {
	t.Helper()
	if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
		t.Fatal(sentence)
	}
	t.Skip(sentence)
}

// qemu is a running QEMU with a Linux kernel in it.
type qemu struct {
	cmd     *exec.Cmd
	console *bufio.Reader
	qmp     net.Conn
	replies *json.Decoder
}

func (r rig) qemu(t *testing.T, img *pager.Image, s *pager.Session, id string, extra ...string) *qemu {
	t.Helper()
	artifacts := os.Getenv("COVEY_ARTIFACTS")
	if artifacts == "" {
		missing(t, "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` and set it to DIR")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing(t, "qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
	}
	kernel := filepath.Join(r.dir, "bzImage")
	if err := copyFile(filepath.Join(artifacts, "bzImage"), kernel); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(r.dir, id+".qmp")
	cmd := r.command(t, img, s, "qemu-system-x86_64", append([]string{
		"-M", "microvm,accel=tcg,acpi=on,rtc=on,memory-backend=mem", "-cpu", "Nehalem-v1,+rdrand", "-smp", "1", "-m", "128M",
		"-object", "memory-backend-file,id=mem,size=128M,mem-path=" + MemPath(3) + ",share=on",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		// As the QEMU driver has it: a guest that has to measure its time stamp counter on a busy host may try for ever.
		"-kernel", kernel, "-append", fmt.Sprintf("console=ttyS0 panic=-1 no_timer_check tsc=reliable tsc_early_khz=%d", tsc.KHz()),
		"-qmp", "unix:" + control + ",server=on,wait=off",
	}, extra...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	q := &qemu{cmd: cmd, console: bufio.NewReader(out)}
	t.Cleanup(q.kill)
	q.connect(t, control)
	return q
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

func (q *qemu) kill() {
	q.cmd.Process.Kill()
	_ = q.cmd.Wait() // it was killed
}

func (q *qemu) connect(t *testing.T, control string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); ; <-tick.C {
		conn, err := net.Dial("unix", control)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			q.qmp, q.replies = conn, json.NewDecoder(conn)
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	var hello map[string]any
	if err := q.replies.Decode(&hello); err != nil {
		t.Fatal(err)
	}
	q.do(t, "qmp_capabilities", nil)
	q.do(t, "migrate-set-capabilities", map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}})
}

// do executes a QMP command and returns its answer.
func (q *qemu) do(t *testing.T, command string, args map[string]any) map[string]any {
	t.Helper()
	text, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if args == nil {
		text, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.qmp.Write(text); err != nil {
		t.Fatal(err)
	}
	for {
		var reply map[string]any
		if err := q.replies.Decode(&reply); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if e := reply["error"]; e != nil {
			t.Fatalf("%s: %v", command, e)
		}
		if r, ok := reply["return"]; ok {
			m, _ := r.(map[string]any)
			return m
		}
	}
}

// until polls a QMP query until its status is want.
func (q *qemu) until(t *testing.T, query, want string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); ; <-tick.C {
		status := q.do(t, query, nil)["status"]
		if status == want {
			return
		}
		if time.Now().After(end) || status == "failed" {
			t.Fatalf("%s: %v, want %s", query, status, want)
		}
	}
}

// sees reads the console until there is a line with text; two minutes at most, then QEMU is killed.
func (q *qemu) sees(t *testing.T, text string) {
	t.Helper()
	late := time.AfterFunc(2*time.Minute, func() { q.cmd.Process.Kill() })
	defer late.Stop()
	for {
		line, err := q.console.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			t.Fatalf("the console ends (%v) without %q", err, text)
		}
	}
}

func TestQEMUBootsFromZerosAndGoesOnFromADraft(t *testing.T) {
	r := newRig(t)
	img, err := r.cache.Zeros(guestMemory)
	if err != nil {
		t.Fatal(err)
	}
	s := r.session(t, "sb_boot", img)
	booted := r.qemu(t, img, s, "sb_boot")
	booted.sees(t, "Linux version")
	booted.do(t, "stop", nil)
	state := filepath.Join(r.dir, "state")
	booted.do(t, "migrate", map[string]any{"uri": "exec:cat > " + state})
	booted.until(t, "query-migrate", "completed")
	saved := save(t, r, booted.cmd.Process.Pid, img)
	booted.kill()
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(state); err != nil || info.Size() > mib {
		t.Errorf("the state file has memory in it: %v, %v", info, err)
	}

	restored, err := r.cache.Open("snap_boot", saved, nil)
	if err != nil {
		t.Fatal(err)
	}
	rs := r.session(t, "sb_restored", restored)
	again := r.qemu(t, restored, rs, "sb_restored", "-incoming", "defer")
	again.do(t, "migrate-incoming", map[string]any{"uri": "exec:cat " + state})
	again.until(t, "query-status", "paused")
	again.do(t, "cont", nil)
	// Without a disk, that is how far it comes.
	again.sees(t, "Unable to mount root fs")
	if err := rs.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%v", rs.Sources())
}

// save makes a snapshot of QEMU's memory, and returns it as a source: what was not dirty is zeros.
func save(t *testing.T, r rig, pid int, img *pager.Image) pager.Source {
	t.Helper()
	mapped, err := pager.FindMapping(pid, img.File())
	if err != nil || len(mapped) != 1 || mapped[0].Size != guestMemory {
		t.Fatalf("QEMU maps the image at %+v, %v", mapped, err)
	}
	d, err := r.cache.BeginDraft("snap_boot", guestMemory)
	if err != nil {
		t.Fatal(err)
	}
	var dirty int64
	err = pager.DirtyPages(pid, mapped[0].Base, guestMemory, func(off, n int64) error {
		b := make([]byte, n)
		dirty += n
		if err := pager.ReadMemory(pid, mapped[0].Base+uint64(off), b); err != nil {
			return err
		}
		return d.WriteDirty(b, off)
	})
	if err != nil {
		t.Fatal(err)
	}
	if dirty == 0 || dirty == guestMemory {
		t.Errorf("%d bytes of %d are dirty", dirty, guestMemory)
	}
	t.Logf("%d bytes were dirty, of which the draft keeps %d", dirty, r.cache.Stats().CachedBytes)
	src := written{ranges: d.Ranges()}
	if err := d.Commit(src); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return src
}

// written is a source that knows what is in the draft, and has nothing else but zeros.
type written struct {
	pager.Source
	ranges []pager.Range
}

func (w written) Size() int64 { return guestMemory }

func (w written) Run(off int64) (int64, bool) {
	for _, r := range w.ranges {
		if off < r.Off {
			return r.Off - off, true
		}
		if off < r.Off+r.Len {
			return r.Off + r.Len - off, r.Zero
		}
	}
	return guestMemory - off, true
}
