package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coveyhq/covey/guest/tsc"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// artifacts is the directory that guest-build made.
func artifacts(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("COVEY_ARTIFACTS")
	if dir == "" {
		needs(t, "COVEY_ARTIFACTS is not set: run `go run ./guest/cmd/guest-build -out DIR` and set it to DIR")
	}
	return dir
}

// needs skips the test, or fails it where everything is required.
func needs(t testing.TB, what string) {
	t.Helper()
	if strings.Contains(os.Getenv("COVEY_REQUIRE"), "all") {
		t.Fatal(what)
	}
	t.Skip(what)
}

// machine is one VM with its namespace.
type machine struct {
	t       testing.TB
	dir     string
	netns   string
	console string
	args    []string
	cmd     *exec.Cmd
	exited  chan error
	qmp     *bufio.Reader
	qmpConn net.Conn
}

// network makes a namespace with a TAP in it.
func network(t testing.TB) string {
	t.Helper()
	name := "covey-gt-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano()%1e6, 10)
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "del", name) })
	ip("-n", name, "tuntap", "add", "dev", "tap0", "mode", "tap")
	ip("-n", name, "addr", "add", "172.16.0.1/30", "dev", "tap0")
	ip("-n", name, "link", "set", "tap0", "address", "06:00:ac:10:00:01", "up")
	// As on a host: a question that is sent while a VM is being restored is lost, and asked again only after a second.
	ip("-n", name, "neigh", "add", "172.16.0.2", "lladdr", "06:00:ac:10:00:02", "dev", "tap0", "nud", "permanent")
	return name
}

// newMachine prepares a VM of an image with a copy of its disk; start starts it.
func newMachine(t testing.TB, image string, memoryMB int) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		needs(t, "a VM with a TAP needs root")
	}
	from := artifacts(t)
	m := &machine{t: t, dir: t.TempDir(), netns: network(t)}
	m.console = filepath.Join(m.dir, "console")
	disk := filepath.Join(m.dir, "disk")
	if out, err := exec.Command("cp", "-L", "--sparse=always", filepath.Join(from, "images", image+".ext4"), disk).CombinedOutput(); err != nil {
		t.Fatalf("copy the disk: %v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(from, "artifacts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Cmdline string `json:"cmdline"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatal(err)
	}
	m.args = []string{
		"netns", "exec", m.netns, "qemu-system-x86_64", "-M", "microvm,accel=tcg,acpi=on,rtc=on,memory-backend=mem", "-cpu", "Nehalem-v1,+rdrand", "-smp", "1", "-m", strconv.Itoa(memoryMB),
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=on", memoryMB, filepath.Join(m.dir, "memory")),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "file:" + m.console,
		"-kernel", filepath.Join(from, "bzImage"), "-initrd", filepath.Join(from, "initramfs.cpio"), "-append", fmt.Sprintf("%s no_timer_check tsc=reliable tsc_early_khz=%d", a.Cmdline, tsc.KHz()),
		"-blockdev", "driver=file,filename=" + disk + ",node-name=f0,discard=unmap", "-blockdev", "driver=raw,node-name=d0,file=f0,discard=unmap",
		"-device", "virtio-blk-device,drive=d0",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-device,netdev=n0,mac=06:00:AC:10:00:02,guest_announce=off",
		"-device", "virtio-rng-device", "-qmp", "unix:" + filepath.Join(m.dir, "qmp") + ",server=on,wait=off",
	}
	return m
}

func (m *machine) start(more ...string) {
	m.t.Helper()
	m.cmd = exec.Command("ip", append(append([]string(nil), m.args...), more...)...)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the death signal comes when this thread ends; a test's goroutine does
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	exited := make(chan error, 1)
	m.exited = exited
	go func() { exited <- m.cmd.Wait() }()
	m.t.Cleanup(m.kill)
}

func (m *machine) kill() {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Kill()
	<-m.exited
	m.exited <- nil // kill may be called again
	m.cmd = nil
	if m.qmpConn != nil {
		m.qmpConn.Close()
		m.qmpConn = nil
	}
	if m.t.Failed() {
		log, _ := os.ReadFile(m.console)
		m.t.Logf("console:\n%s", log)
	}
}

// do runs a QMP command.
func (m *machine) do(command string, args map[string]any) json.RawMessage {
	m.t.Helper()
	if m.qmpConn == nil {
		for end := time.Now().Add(2 * time.Minute); ; {
			c, err := net.Dial("unix", filepath.Join(m.dir, "qmp"))
			if err == nil {
				m.qmpConn, m.qmp = c, bufio.NewReader(c)
				break
			}
			if time.Now().After(end) {
				m.t.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond)
		}
		if _, err := m.qmp.ReadString('\n'); err != nil {
			m.t.Fatal(err)
		}
		m.do("qmp_capabilities", nil)
	}
	q := map[string]any{"execute": command}
	if args != nil {
		q["arguments"] = args
	}
	b, err := json.Marshal(q)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.qmpConn.Write(append(b, '\n')); err != nil {
		m.t.Fatal(err)
	}
	for {
		line, err := m.qmp.ReadBytes('\n')
		if err != nil {
			m.t.Fatalf("%s: %v", command, err)
		}
		var r struct {
			Return, Error json.RawMessage
		}
		if err := json.Unmarshal(line, &r); err != nil {
			m.t.Fatal(err)
		}
		if r.Error != nil {
			m.t.Fatalf("%s: %s", command, r.Error)
		}
		if r.Return != nil {
			return r.Return
		}
	}
}

func (m *machine) await(command, field, want string) {
	m.t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		var r map[string]any
		if err := json.Unmarshal(m.do(command, nil), &r); err != nil {
			m.t.Fatal(err)
		}
		if r[field] == want {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: %v, want %s", command, r, want)
		}
	}
}

func sharedMemory() map[string]any {
	return map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}
}

// save stops the VM, writes its device state and ends it. The memory is in its file.
func (m *machine) save() {
	m.t.Helper()
	m.do("migrate-set-capabilities", sharedMemory())
	m.do("stop", nil)
	m.do("migrate", map[string]any{"uri": "exec:cat > " + filepath.Join(m.dir, "state")})
	m.await("query-migrate", "status", "completed")
	m.do("quit", nil)
	<-m.exited
	m.exited <- nil
	m.kill()
}

// restore starts a VM from what save wrote.
func (m *machine) restore() {
	m.t.Helper()
	m.start("-incoming", "defer")
	m.do("migrate-set-capabilities", sharedMemory())
	m.do("migrate-incoming", map[string]any{"uri": "exec:cat " + filepath.Join(m.dir, "state")})
	m.await("query-status", "status", "paused")
	m.do("cont", nil)
}

// dial connects to guestd from inside the namespace.
func (m *machine) dial(ctx context.Context, _ string) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the namespace
		ns, err := os.Open("/var/run/netns/" + m.netns)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp4", "172.16.0.2:7777")
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// client are guestd's services.
type client struct {
	conn *grpc.ClientConn
	guestv1.GuestServiceClient
	guestv1.ProcessServiceClient
	files guestv1.FileServiceClient
}

// connect waits until guestd answers.
func (m *machine) connect(ctx context.Context) *client {
	m.t.Helper()
	for {
		if conn, err := m.dial(ctx, ""); err == nil {
			conn.Close()
			break
		}
		select {
		case <-ctx.Done():
			m.t.Fatal("guestd does not answer: ", ctx.Err())
		case err := <-m.exited:
			m.exited <- err
			m.t.Fatalf("the VM ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	conn, err := grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(m.dial),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	return &client{conn, guestv1.NewGuestServiceClient(conn), guestv1.NewProcessServiceClient(conn), guestv1.NewFileServiceClient(conn)}
}

// sh runs a shell command and returns its output.
func (c *client) sh(ctx context.Context, t testing.TB, user, script string) string {
	t.Helper()
	r, err := c.Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", script}, User: user})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	if r.GetExitCode() != 0 {
		t.Fatalf("%s: exit code %d: %s%s", script, r.GetExitCode(), r.GetStderr(), r.GetError())
	}
	return strings.TrimSpace(r.GetStdout())
}

func recvAll[T any](recv func() (T, error), each func(T)) error {
	for {
		m, err := recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		each(m)
	}
}
