package pgtest

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/coveyhq/covey/services/chassis/leaktest"
)

// MainWithoutLeaks is Main for packages that leave no goroutine behind.
func MainWithoutLeaks(m *testing.M) int { return leaktest.Check(Main(m)) }

// Child runs the test's binary as a process of its own, whose TestMain is to see by the environment (KEY=VALUE) that it is a server, and to print its
// address. The function kill ends it as kill -9 does, and may be called again; it is at the test's end.
func Child(t testing.TB, env ...string) (addr string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait() // its error is the signal
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("the child did not start:", err)
	}
	return strings.TrimSpace(line), kill
}
