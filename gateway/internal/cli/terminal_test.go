package cli_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// TestATerminalHasTheSizeOfTheOneHereAndFollowsIt types into a shell in a sandbox, through a terminal here that changes its size.
func TestATerminalHasTheSizeOfTheOneHereAndFollowsIt(t *testing.T) {
	mesh := meshtest.Start(t)
	url := serveFor(t, mesh, gateway.TLSConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "covey", "shell", mesh.Add())
	cmd.Env = append(os.Environ(), "COVEY_URL="+url, "COVEY_API_KEY="+meshtest.AdminKey)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var seen bytes.Buffer
	// until reads what the terminal shows until it shows text.
	until := func(text string) {
		t.Helper()
		buf := make([]byte, 4096)
		for !strings.Contains(seen.String(), text) {
			n, err := f.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("no %q in %q: %v", text, seen.String(), err)
			}
		}
	}
	io.WriteString(f, "echo size=$(stty size | tr ' ' x)\n")
	until("size=33x101")
	if err := pty.Setsize(f, &pty.Winsize{Rows: 44, Cols: 111}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, "until stty size | grep -q '44 111'; do sleep 0.1; done; echo new=$(stty size | tr ' ' x)\n")
	until("new=44x111")
	io.WriteString(f, "exit 7\n")
	io.Copy(io.Discard, f) // Ends with an error of the device when the shell closes the terminal.
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Fatalf("it ended with %d", cmd.ProcessState.ExitCode())
	}
}
