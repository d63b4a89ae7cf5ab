package chassis

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/telemetry"
)

// spans reads a trace file.
func spans(t *testing.T, path string) []telemetry.Span {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []telemetry.Span
	for line := range strings.Lines(string(b)) {
		var s telemetry.Span
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, s)
	}
	return list
}

func TestOneTraceGoesThroughAllDaemons(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) telemetry.Config { return telemetry.Config{TraceFile: filepath.Join(dir, name)} }
	out := &logs{}
	last := &fakeHost{}
	d, stop := start(t, Config{Telemetry: file("last")}, last, WithHostID("a"), WithLogOutput(out))
	last.ping = func(ctx context.Context) error {
		d.Log().InfoContext(ctx, "in the handler")
		return nil
	}
	first := &fakeHost{}
	edge, stopEdge := start(t, Config{Service: "covey-gateway", Telemetry: file("edge")}, first)
	onward := client(t, edge, d)
	first.ping = func(ctx context.Context) error {
		ctx, span := edge.Telemetry().Tracers.Tracer("test").Start(ctx, "gateway.step")
		defer span.End()
		_, err := onward.PingSandbox(ctx, &hostv1.PingSandboxRequest{})
		return err
	}
	if _, err := client(t, onlyCalls(t, Config{}), edge).PingSandbox(within(t), &hostv1.PingSandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	stopEdge()
	stop() // Which also writes the last spans.

	byID, server := map[string]telemetry.Span{}, telemetry.Span{}
	for _, s := range append(spans(t, filepath.Join(dir, "edge")), spans(t, filepath.Join(dir, "last"))...) {
		byID[s.SpanID] = s
		if s.HostID == "a" {
			server = s
		}
	}
	var path []string
	for s, ok := server, true; ok; s, ok = byID[s.ParentID] {
		path = append(path, s.Service+" "+s.Kind)
	}
	want := "covey-host server, covey-gateway client, covey-gateway internal, covey-gateway server"
	if got := strings.Join(path, ", "); got != want {
		t.Errorf("from the last span upwards: %s; want %s", got, want)
	}
	if !strings.Contains(out.String(), `"msg":"in the handler"`) || !strings.Contains(out.String(), `"trace_id":"`+server.TraceID+`"`) {
		t.Errorf("the log does not name trace %s:\n%s", server.TraceID, out)
	}
}
