package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/services/chassis/telemetry"
)

// rest calls the gateway with a key and headers, and decodes the answer into out.
func rest(t *testing.T, ctx context.Context, key, method, path string, body any, out any, headers ...string) int {
	t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, s.m.URL+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(got, out); err != nil {
			t.Fatalf("%s %s: %d: %q: %v", method, path, res.StatusCode, got, err)
		}
	}
	return res.StatusCode
}

// spansOf reads all spans of a trace, from the files of all daemons.
func spansOf(t *testing.T, id string) map[string]telemetry.Span {
	t.Helper()
	spans := map[string]telemetry.Span{}
	for _, f := range glob(filepath.Join(s.m.Dir, "traces", "*.jsonl")) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var sp telemetry.Span
			if bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &sp) == nil && sp.TraceID == id {
				spans[sp.SpanID] = sp
			}
		}
	}
	return spans
}

// whole waits until a trace has all that is wanted ("service span" or "service ...part"), checks that no span's parent is
// missing but the caller's own, and returns the spans.
func whole(t *testing.T, id, caller string, want ...string) {
	t.Helper()
	var spans map[string]telemetry.Span
	has := func(w string) bool {
		service, name, _ := strings.Cut(w, " ")
		for _, sp := range spans {
			if sp.Service == service && strings.Contains(sp.Name, name) {
				return true
			}
		}
		return false
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(overrun * 10 * time.Second)
	for done := false; !done; {
		spans = spansOf(t, id)
		missing := slices.DeleteFunc(slices.Clone(want), has)
		var orphans []string
		for _, sp := range spans {
			if _, ok := spans[sp.ParentID]; !ok && sp.ParentID != caller {
				orphans = append(orphans, fmt.Sprintf("%s of %s, parent %q", sp.Name, sp.Service, sp.ParentID))
			}
		}
		if len(missing) == 0 && len(orphans) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			var names []string
			for _, sp := range spans {
				names = append(names, sp.Service+" "+sp.Name)
			}
			slices.Sort(names)
			t.Fatalf("trace %s lacks %q; without parents: %q; it has\n%s", id, missing, orphans, strings.Join(names, "\n"))
		}
	}
}

func TestOneTraceGoesFromTheRequestThroughAllDaemonsToTheGuest(t *testing.T) {
	ctx := start(t)
	const caller = "00f067aa0ba902b7"
	header := func(id string) string { return "00-" + id + "-" + caller + "-01" }
	const creation, run, pause, wake = "4bf92f3577b34da6a3ce929d0e0e4701", "4bf92f3577b34da6a3ce929d0e0e4702", "4bf92f3577b34da6a3ce929d0e0e4703", "4bf92f3577b34da6a3ce929d0e0e4704"
	var sb struct{ ID string }
	if code := rest(t, ctx, s.key, "POST", "/v1/sandboxes", map[string]any{"template": "tiny", "auto_resume": true}, &sb, "traceparent", header(creation)); code != 200 {
		t.Fatalf("create: %d", code)
	}
	remove(t, sb.ID)
	whole(t, creation, caller,
		"covey-gateway /v1/sandboxes", "covey-gateway SandboxService/CreateSandbox", "covey-sandbox SandboxService/CreateSandbox",
		"covey-sandbox SchedulerService/Place", "covey-scheduler SchedulerService/Place", "covey-sandbox HostService/StartSandbox", "covey-host HostService/StartSandbox",
		"covey-host hostagent.start", "covey-host hostagent.slot", "covey-host hostagent.disk", "covey-host hostagent.pager", "covey-host hostagent.vmm",
		"covey-host hostagent.first_fault",
		"covey-host hostagent.guest", "covey-host GuestService/AfterRestore")

	exec1 := map[string]any{"cmd": "echo", "args": []string{"hi"}}
	if code := rest(t, ctx, s.key, "POST", "/v1/sandboxes/"+sb.ID+"/exec", exec1, nil, "traceparent", header(run)); code != 200 {
		t.Fatalf("exec: %d", code)
	}
	guest := []string{"covey-gateway ProcessService/Exec", "covey-host ProcessService/Exec"}
	whole(t, run, caller, guest...)

	if code := rest(t, ctx, s.key, "POST", "/v1/sandboxes/"+sb.ID+"/pause", map[string]any{}, nil, "traceparent", header(pause)); code != 200 {
		t.Fatalf("pause: %d", code)
	}
	whole(t, pause, caller, "covey-gateway PauseSandbox", "covey-sandbox PauseSandbox", "covey-host PauseSandbox", "covey-host hostagent.")

	// The exec that wakes it has all of the resume in its trace.
	if code := rest(t, ctx, s.key, "POST", "/v1/sandboxes/"+sb.ID+"/exec", exec1, nil, "traceparent", header(wake)); code != 200 {
		t.Fatalf("exec that wakes: %d", code)
	}
	whole(t, wake, caller, append(guest, "covey-sandbox LocateSandbox", "covey-scheduler SchedulerService/Place", "covey-host hostagent.start", "covey-host GuestService/AfterRestore")...)

	// And the command line shows it.
	var shown []byte
	eventually(t, 5*time.Second, "covey trace shows all four", func() bool {
		cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv("COVEY_BIN"), "covey"), "trace", sb.ID, "--dir", s.m.Dir, "-n", "10")
		shown, _ = cmd.CombinedOutput()
		return bytes.Contains(shown, []byte(creation)) && bytes.Contains(shown, []byte(run)) && bytes.Contains(shown, []byte(pause)) && bytes.Contains(shown, []byte(wake))
	})
	for _, part := range []string{"hostagent.slot", "GuestService/AfterRestore", "█", "scheduler"} {
		if !bytes.Contains(shown, []byte(part)) {
			t.Errorf("covey trace does not show %q:\n%s", part, shown)
		}
	}
	t.Logf("covey trace %s\n%s", sb.ID, shown)
}
