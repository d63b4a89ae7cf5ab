package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/coveyhq/covey/guest/tsc"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// eager is the baseline of the restore bench: the same guest in a QEMU of its own, saved and restored by QEMU alone, memory and all.
type eager struct {
	netns, dir, artifacts string
	mb                    uint32
	cmdline               string
}

// eagerRestore saves a guest whose memory was touched, and takes the time from QEMU's start until a command was answered, ms.
func (e *env) eagerRestore(ctx context.Context, mb uint32) (_ series, err error) {
	b := &eager{netns: fmt.Sprintf("cvbench-%d", os.Getpid()), artifacts: e.t.Artifacts, mb: mb}
	raw, err := os.ReadFile(filepath.Join(b.artifacts, "artifacts.json"))
	if err != nil {
		return nil, err
	}
	var about struct {
		Cmdline string `json:"cmdline"`
	}
	if err := json.Unmarshal(raw, &about); err != nil {
		return nil, err
	}
	b.cmdline = fmt.Sprintf("%s tsc=reliable tsc_early_khz=%d", about.Cmdline, tsc.KHz())
	if b.dir, err = os.MkdirTemp("/dev/shm", "covey-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	for _, args := range [][]string{
		{"netns", "add", b.netns}, {"-n", b.netns, "tuntap", "add", "tap0", "mode", "tap"},
		{"-n", b.netns, "addr", "add", "172.16.0.1/30", "dev", "tap0"}, {"-n", b.netns, "link", "set", "tap0", "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	defer func() { err = errors.Join(err, exec.Command("ip", "netns", "del", b.netns).Run()) }()
	if err := b.save(ctx); err != nil {
		return nil, err
	}
	var times series
	for range e.runs {
		took, err := b.restore(ctx)
		if err != nil {
			return nil, err
		}
		times = append(times, took)
	}
	return times, nil
}

func (b *eager) state() string { return filepath.Join(b.dir, "state") }

// start runs QEMU in the namespace; more are arguments besides.
func (b *eager) start(more ...string) (*exec.Cmd, error) {
	args := append([]string{"netns", "exec", b.netns, "qemu-system-x86_64",
		"-M", "microvm,acpi=on,rtc=on", "-accel", "tcg", "-cpu", "Nehalem-v1,+rdrand", "-m", fmt.Sprint(b.mb), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", filepath.Join(b.artifacts, "bzImage"), "-initrd", filepath.Join(b.artifacts, "initramfs.cpio"), "-append", b.cmdline,
		"-drive", "if=none,id=d0,format=raw,snapshot=on,file=" + filepath.Join(b.artifacts, "images", "base.ext4"), "-device", "virtio-blk-device,drive=d0",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-device,netdev=n0,mac=06:00:AC:10:00:02",
		"-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-device,rng=r0",
		"-qmp", "unix:" + filepath.Join(b.dir, "qmp") + ",server=on,wait=off"}, more...)
	cmd := exec.Command("ip", args...)
	cmd.Stderr = os.Stderr
	return cmd, cmd.Start()
}

// save boots the guest, has it touch its memory, and saves it to a file: as it runs, as a guest that was stopped is restored stopped.
func (b *eager) save(ctx context.Context) error {
	cmd, err := b.start()
	if err != nil {
		return err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	if err := b.exec(ctx, touch(b.mb)); err != nil {
		return err
	}
	q, err := net.Dial("unix", filepath.Join(b.dir, "qmp"))
	if err != nil {
		return err
	}
	defer q.Close()
	lines := bufio.NewScanner(q)
	for _, c := range []string{`{"execute":"qmp_capabilities"}`, `{"execute":"migrate","arguments":{"uri":"exec:cat > ` + b.state() + `"}}`} {
		if _, err := fmt.Fprintln(q, c); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		if _, err := fmt.Fprintln(q, `{"execute":"query-migrate"}`); err != nil {
			return err
		}
		for lines.Scan() {
			switch line := lines.Text(); {
			case strings.Contains(line, `"status": "completed"`):
				return nil
			case strings.Contains(line, `"status": "failed"`):
				return errors.New("QEMU could not save the guest: " + line)
			case !strings.Contains(line, `"status": "active"`) && !strings.Contains(line, `"status": "setup"`):
				continue
			}
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return ctx.Err()
}

func (b *eager) restore(ctx context.Context) (float64, error) {
	began := time.Now()
	cmd, err := b.start("-incoming", "exec:cat "+b.state())
	if err != nil {
		return 0, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	err = b.exec(ctx, "true")
	return ms(time.Since(began)), err
}

// exec runs a command in the guest, and waits until there is one.
func (b *eager) exec(ctx context.Context, script string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialIn(ctx, "/run/netns/"+b.netns, "172.16.0.2:7777")
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		res, err := guestv1.NewProcessServiceClient(conn).Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"})
		if err == nil && res.GetExitCode() != 0 {
			return fmt.Errorf("%s: exit code %d: %s", script, res.GetExitCode(), res.GetStderr())
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		conn.ResetConnectBackoff()
		time.Sleep(5 * time.Millisecond)
	}
}

// dialIn dials from inside the network namespace at a path: on a thread of its own, which ends with the goroutine because it stays locked to it.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		c, err := (&net.Dialer{Timeout: 50 * time.Millisecond}).DialContext(ctx, "tcp4", addr)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}
