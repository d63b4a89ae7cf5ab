package cli

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// localMeshDir is where a local mesh is by default.
const localMeshDir = "/var/lib/covey/local"

// span is what is read of a line of a trace file; the chassis's package telemetry writes them.
type span struct {
	TraceID    string         `json:"trace_id"`
	SpanID     string         `json:"span_id"`
	ParentID   string         `json:"parent_id"`
	Name       string         `json:"name"`
	Kind       string         `json:"kind"`
	Start      time.Time      `json:"start"`
	DurationUS int64          `json:"duration_us"`
	Error      string         `json:"error"`
	Service    string         `json:"service"`
	HostID     string         `json:"host_id"`
	Attributes map[string]any `json:"attributes"`
}

func (s *span) end() time.Time { return s.Start.Add(time.Duration(s.DurationUS) * time.Microsecond) }

// trace is all spans of one request.
type trace struct {
	id    string
	spans []*span
}

func (a *app) traceCmd() *cobra.Command {
	var dir string
	var last int
	var all bool
	cmd := &cobra.Command{
		Use: "trace SANDBOX|REQUEST", Short: "Show what the local mesh did for a sandbox, as a waterfall",
		Long: "Show the last traces of a sandbox, or of one request by its id, read from the trace files of a local mesh. A mesh elsewhere sends its traces by OTLP to where OTEL_EXPORTER_OTLP_ENDPOINT says.",
		Args: args("SANDBOX"), Annotations: offline,
		RunE: func(_ *cobra.Command, argv []string) error {
			read, err := readTraces(filepath.Join(dir, "traces"))
			if err != nil {
				return err
			}
			traces := tracesOf(read, argv[0], all)
			if len(traces) == 0 {
				return fmt.Errorf("no trace of %s in %s; daemons write theirs within a second of a call's end, and keep the last 64 to 128 MiB", argv[0], dir)
			}
			traces = traces[max(0, len(traces)-last):]
			if a.output == "json" {
				return a.traceJSON(traces)
			}
			for i, t := range traces {
				if i > 0 {
					fmt.Fprintln(a.out)
				}
				a.waterfall(t)
			}
			return nil
		},
	}
	mesh := localMeshDir
	if v := os.Getenv("COVEY_MESH_DIR"); v != "" {
		mesh = v
	}
	cmd.Flags().StringVar(&dir, "dir", mesh, "the local mesh's directory (COVEY_MESH_DIR)")
	cmd.Flags().IntVarP(&last, "last", "n", 3, "how many traces, the newest last")
	cmd.Flags().BoolVar(&all, "all", false, "those of what the mesh does by itself too, like comparing hosts")
	return cmd
}

// readTraces reads all trace files of a directory, those that were renamed included. A line that is being written is left out.
func readTraces(dir string) (map[string]*trace, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl*"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no trace files in %s: is this the directory of a local mesh? --dir or COVEY_MESH_DIR names it", dir)
	}
	traces := map[string]*trace{}
	for _, f := range files {
		if err := readSpans(f, traces); err != nil {
			return nil, err
		}
	}
	for _, t := range traces {
		slices.SortStableFunc(t.spans, func(a, b *span) int { return a.Start.Compare(b.Start) })
	}
	return traces, nil
}

func readSpans(path string, into map[string]*trace) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // Renamed meanwhile.
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		var s span
		if json.Unmarshal(line, &s) != nil || s.TraceID == "" {
			continue
		}
		t := into[s.TraceID]
		if t == nil {
			t = &trace{id: s.TraceID}
			into[s.TraceID] = t
		}
		t.spans = append(t.spans, &s)
	}
}

// tracesOf are the traces with a span about a sandbox or request, oldest first.
func tracesOf(traces map[string]*trace, id string, all bool) []*trace {
	var found []*trace
	for _, t := range traces {
		names := slices.ContainsFunc(t.spans, func(s *span) bool {
			for _, v := range s.Attributes {
				if text, ok := v.(string); ok && text == id {
					return true
				}
			}
			return false
		})
		if names && (all || t.asked()) {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, func(a, b *trace) int {
		return cmp.Or(a.spans[0].Start.Compare(b.spans[0].Start), strings.Compare(a.id, b.id))
	})
	return found
}

// asked tells that somebody asked for it: it came in through the gateway, or is work that goes on by itself but changed something.
func (t *trace) asked() bool {
	return slices.ContainsFunc(t.spans, func(s *span) bool {
		return s.Service == "covey-gateway" || strings.HasPrefix(s.Name, "hostagent.")
	})
}

func (a *app) traceJSON(traces []*trace) error {
	enc := json.NewEncoder(a.out)
	for _, t := range traces {
		for _, s := range t.spans {
			if err := enc.Encode(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// barWidth is the width of a waterfall's bars, characters.
const barWidth = 40

// waterfall prints a trace: children below their parents, each with its bar on the time of the whole.
func (a *app) waterfall(t *trace) {
	begin, end := t.spans[0].Start, t.spans[0].end()
	known := map[string]bool{}
	for _, s := range t.spans {
		known[s.SpanID] = true
		if s.end().After(end) {
			end = s.end()
		}
	}
	total := max(end.Sub(begin), time.Microsecond)
	children := map[string][]*span{}
	lost := 0
	for _, s := range t.spans {
		parent := s.ParentID
		if !known[parent] {
			if parent != "" {
				lost++
			}
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	fmt.Fprintf(a.out, "trace %s  %s  %s, %d spans\n", t.id, begin.Local().Format("2006-01-02 15:04:05.000"), short(total), len(t.spans))
	var rows [][]string
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		for _, s := range children[parent] {
			rows = append(rows, []string{strings.Repeat("  ", depth) + s.label(), s.where(), short(s.Start.Sub(begin)), short(s.end().Sub(s.Start)), bar(s, begin, total)})
			walk(s.SpanID, depth+1)
		}
	}
	walk("", 0)
	a.table("SPAN WHERE AT TOOK", rows)
	if lost > 1 {
		fmt.Fprintf(a.out, "%d spans have parents that are in no trace file\n", lost-1)
	}
}

func (s *span) label() string {
	l := clip(s.Name, 60)
	switch s.Kind {
	case "client":
		l = "→ " + l
	case "server":
		l = "← " + l
	}
	if s.Error != "" {
		l += "  ✗ " + clip(s.Error, 60)
	}
	return l
}

func (s *span) where() string {
	if s.Service == "covey-host" {
		return s.HostID
	}
	return strings.TrimPrefix(s.Service, "covey-")
}

func bar(s *span, begin time.Time, total time.Duration) string {
	from := int(s.Start.Sub(begin) * barWidth / total)
	to := int(s.end().Sub(begin) * barWidth / total)
	from = min(max(from, 0), barWidth-1)
	return strings.Repeat(" ", from) + strings.Repeat("█", max(to-from, 1))
}

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1fms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}
