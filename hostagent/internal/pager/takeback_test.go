package pager_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/pager"
	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

const agentVariable = "COVEY_PAGER_TEST_AGENT"

// agentMain is a host agent that serves one session and dies by a signal. Its source never answers for the second half.
func agentMain() {
	dir := os.Getenv(agentVariable)
	if dir == "" {
		return
	}
	c, err := pager.NewCache(pager.Config{Dir: dir})
	if err == nil {
		var img *pager.Image
		p := agentPattern
		if img, err = c.Open("snap_t", slow{Pattern: p, from: "peer", low: p.Bytes / 2, to: p.Bytes, gate: make(chan struct{})}, nil); err == nil {
			_, err = c.Serve(context.Background(), "sb_t", img, filepath.Join(dir, "socket"), 0)
		}
	}
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

var agentPattern = pagertest.Pattern{Seed: 11, Bytes: 4 * mib, Zeros: 4}

// startAgent starts an agent on a directory and returns it once it listens.
func startAgent(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentVariable+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent says %q, %v", line, err)
	}
	return cmd
}

func TestAVMOutlivesAnAgentKilledInTheMiddleOfItsFaults(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]pagertest.Setup{
		"mapped privately": {}, "anonymous": {Anonymous: true}, "anonymous, with removes, in two regions": {Anonymous: true, Removes: true, Regions: 2},
	} {
		t.Run(name, func(t *testing.T) {
			dir, p := tmpfs(t), agentPattern
			agent := startAgent(t, dir)
			file, err := os.Open(filepath.Join(dir, "snap_t.mem"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			setup.Size, setup.Socket = p.Bytes, filepath.Join(dir, "socket")
			tt, err := pagertest.Start(context.Background(), setup, file)
			if err != nil {
				t.Fatal(err)
			}
			defer tt.Close()
			ask(t, tt, pagertest.Order{Do: "check", Len: p.Bytes / 2, Pattern: p, Threads: 2})
			ask(t, tt, pagertest.Order{Do: "write", Off: 4096, Len: 4096, Byte: 7})
			// These wait in the kernel, their messages read by an agent that is about to die.
			if err := tt.Give(pagertest.Order{Do: "check", Off: p.Bytes / 2, Len: p.Bytes / 2, Pattern: p, Threads: 8}); err != nil {
				t.Fatal(err)
			}
			agent.Process.Kill()
			_ = agent.Wait() // it was killed

			c := newCache(t, pager.Config{Dir: dir})
			img := open(t, c, "snap_t", p)
			s, err := c.TakeBack(t.Context(), "sb_t", img, setup.Socket, 0, tt.PID())
			if err != nil {
				t.Fatal(err)
			}
			c.Sweep()
			if a, err := tt.Take(); err != nil || a.Wrong > 0 {
				t.Errorf("%d pages are wrong, %v", a.Wrong, err)
			}
			if a := ask(t, tt, pagertest.Order{Do: "read", Off: 4096, Len: 1}); a.Byte != 7 {
				t.Errorf("what the VM wrote reads as %d", a.Byte)
			}
			tt.Close()
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Drop("snap_t")
			img.Release()
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

func TestAVMMThatHadNotConnectedIsAwaitedAfterTakeBack(t *testing.T) {
	t.Parallel()
	p := pagertest.Pattern{Seed: 12, Bytes: mib}
	c := newCache(t, pager.Config{})
	img := open(t, c, "snap_n", p)
	vmm := exec.Command("sleep", "60")
	if err := vmm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		vmm.Process.Kill()
		_ = vmm.Wait() // it was killed
	}()
	socket := filepath.Join(t.TempDir(), "s")
	s, err := c.TakeBack(t.Context(), "sb_n", img, socket, 0, vmm.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	checkAll(t, start(t, s, img, pagertest.Setup{}), p, 2)
}
