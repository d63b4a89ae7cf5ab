package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestTheRequestsInTheREADMEWork runs them as they stand there, one after the other: the first makes the sandbox of the others.
func TestTheRequestsInTheREADMEWork(t *testing.T) {
	ctx := start(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl: with Debian's package curl installed, the requests in the README are made")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	id, out := "", []byte(nil)
	for line := range strings.Lines(string(readme)) {
		request, is := strings.CutPrefix(line, "    curl ")
		if !is {
			continue
		}
		cmd := exec.CommandContext(ctx, "sh", "-c", "curl -sS --fail-with-body "+request)
		cmd.Env = append(os.Environ(), "COVEY_URL="+s.m.URL, "COVEY_API_KEY="+s.key, "id="+id)
		if out, err = cmd.Output(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), err, out)
		}
		var made struct{ ID string }
		if id == "" && json.Unmarshal(out, &made) == nil {
			id = made.ID
			defer remove(t, id)
		}
	}
	if !strings.Contains(string(out), "42") {
		t.Errorf("the last answers %s", out)
	}
}
