package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Span is one line of a trace file.
type Span struct {
	TraceID    string         `json:"trace_id"`            // 32 hex digits
	SpanID     string         `json:"span_id"`             // 16 hex digits
	ParentID   string         `json:"parent_id,omitempty"` // of the parent span, which may be in another daemon's file
	Name       string         `json:"name"`
	Kind       string         `json:"kind"` // internal, server, client, producer, consumer
	Start      time.Time      `json:"start"`
	DurationUS int64          `json:"duration_us"`
	Error      string         `json:"error,omitempty"` // set if the span failed
	Service    string         `json:"service"`
	HostID     string         `json:"host_id,omitempty"`
	Attributes map[string]any `json:"attributes,omitempty"`
	Events     []SpanEvent    `json:"events,omitempty"`
}

// SpanEvent is a moment within a Span.
type SpanEvent struct {
	Name       string         `json:"name"`
	Time       time.Time      `json:"time"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

// spanFileLimit is the size at which a file is renamed to "<name>.1" and begun anew.
const spanFileLimit = 64 << 20

// spanFile is an exporter that appends to a file. Whole lines are written with one write each batch, so files may be read meanwhile.
type spanFile struct {
	path  string
	limit int64

	mu   sync.Mutex // guards the rest
	file *os.File   // nil once shut down
	size int64
}

func newSpanFile(path string) (*spanFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("telemetry: trace file: %w", err)
	}
	s := &spanFile{path: path, limit: spanFileLimit}
	return s, s.open()
}

func (s *spanFile) open() error {
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("telemetry: trace file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.file, s.size = f, info.Size()
	return nil
}

// ExportSpans implements sdktrace.SpanExporter.
func (s *spanFile) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, sp := range spans {
		if err := enc.Encode(line(sp)); err != nil {
			return fmt.Errorf("telemetry: span %s: %w", sp.Name(), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	if err := s.rotate(int64(b.Len())); err != nil {
		return err
	}
	n, err := s.file.Write(b.Bytes())
	s.size += int64(n)
	return err
}

// rotate makes room for n bytes. mu is held.
func (s *spanFile) rotate(n int64) error {
	if s.size == 0 || s.size+n <= s.limit {
		return nil
	}
	err := errors.Join(s.file.Close(), os.Rename(s.path, s.path+".1"))
	s.file = nil
	return errors.Join(err, s.open())
}

// Shutdown implements sdktrace.SpanExporter.
func (s *spanFile) Shutdown(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

func line(sp sdktrace.ReadOnlySpan) Span {
	l := Span{
		TraceID: sp.SpanContext().TraceID().String(), SpanID: sp.SpanContext().SpanID().String(), Name: sp.Name(),
		Kind: sp.SpanKind().String(), Start: sp.StartTime(), DurationUS: sp.EndTime().Sub(sp.StartTime()).Microseconds(),
		Attributes: values(sp.Attributes()),
	}
	if p := sp.Parent(); p.HasSpanID() {
		l.ParentID = p.SpanID().String()
	}
	if st := sp.Status(); st.Code == codes.Error {
		l.Error = st.Description
		if l.Error == "" {
			l.Error = "error"
		}
	}
	for _, kv := range sp.Resource().Attributes() {
		switch kv.Key {
		case "service.name":
			l.Service = kv.Value.AsString()
		case "host.id":
			l.HostID = kv.Value.AsString()
		}
	}
	for _, e := range sp.Events() {
		l.Events = append(l.Events, SpanEvent{Name: e.Name, Time: e.Time, Attributes: values(e.Attributes)})
	}
	return l
}

func values(kvs []attribute.KeyValue) map[string]any {
	if len(kvs) == 0 {
		return nil
	}
	m := make(map[string]any, len(kvs))
	for _, kv := range kvs {
		m[string(kv.Key)] = kv.Value.AsInterface()
	}
	return m
}
