package rest

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// maxBody is the largest body of a request but for those that carry files, bytes.
const maxBody = 8 << 20

// maxRequestID bounds what is taken over from a client into the logs.
const maxRequestID = 128

// recorder remembers whether an answer has begun, and its status.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher, which grpc-gateway asks for.
func (w *recorder) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

// begun tells whether an answer has begun.
func begun(w http.ResponseWriter) bool {
	rec, ok := w.(*recorder)
	return ok && rec.status != 0
}

// chain gives a request its id, logs it, and answers for a handler that panics.
func (s *Server) chain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !legalID(id) {
			id = "req_" + ulid.Make().String()
		}
		ctx := s.Propagator.Extract(tenant.WithRequestID(r.Context(), id), propagation.HeaderCarrier(r.Header))
		route := s.routeOf(r)
		ctx, span := s.Tracer.Start(ctx, "gateway.http "+r.Method+" "+route, trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("http.route", route), attribute.String("covey.request_id", id)))
		defer span.End()
		r = r.WithContext(ctx)
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set("X-Request-Id", id)
		defer s.finish(rec, r, route, span, time.Now())
		next.ServeHTTP(rec, r)
	})
}

// finish ends a request.
func (s *Server) finish(w *recorder, r *http.Request, route string, span trace.Span, began time.Time) {
	cause := recover()
	if cause != nil && cause != http.ErrAbortHandler {
		s.Log.ErrorContext(r.Context(), "panic", "path", r.URL.Path, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
		if !begun(w) {
			p, _ := explain(r.Context(), fmt.Errorf("panic: %v", cause))
			writeProblem(w, p)
			cause = nil
		} else {
			cause = http.ErrAbortHandler
		}
	}
	span.SetAttributes(attribute.Int("http.response.status_code", w.status))
	if w.status >= 500 {
		span.SetStatus(otelcodes.Error, http.StatusText(w.status))
	}
	took := time.Since(began)
	s.durations.Record(r.Context(), took.Seconds(), metric.WithAttributes(attribute.String("http.request.method", r.Method),
		attribute.String("http.route", route), attribute.Int("http.response.status_code", w.status)))
	s.Log.InfoContext(r.Context(), "http", "method", r.Method, "route", route, "path", r.URL.Path, "status", w.status, "bytes", w.bytes,
		"duration_ms", float64(took.Microseconds())/1000)
	if cause != nil {
		panic(cause)
	}
}

func legalID(id string) bool {
	return id != "" && len(id) <= maxRequestID && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

// keyProtocol carries an API key as a WebSocket subprotocol, for browsers, which cannot set headers there.
const keyProtocol = "covey.key."

// authenticated lets those pass who have a key. What they may do is checked where it is done.
func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secret := access.Secret(r.Header.Values("Authorization"), r.Header.Values("X-API-Key"))
		if secret == "" {
			secret = keyAmong(r.Header.Values("Sec-WebSocket-Protocol"))
		}
		ctx, err := s.Keys.Identify(r.Context(), secret, s.attempt(r))
		if err != nil {
			s.fail(w, r, err)
			return
		}
		r = r.WithContext(ctx)
		// The credentials end here.
		for _, h := range []string{"Authorization", "X-API-Key", "Cookie"} {
			r.Header.Del(h)
		}
		next.ServeHTTP(w, r)
	})
}

// attempt is a request as access knows it.
func (s *Server) attempt(r *http.Request) access.Attempt {
	return access.Attempt{Method: func() string { return r.Method + " " + s.routeOf(r) }, From: r.RemoteAddr}
}

func keyAmong(protocols []string) string {
	for _, line := range protocols {
		for p := range strings.SplitSeq(line, ",") {
			if key, ok := strings.CutPrefix(strings.TrimSpace(p), keyProtocol); ok {
				return key
			}
		}
	}
	return ""
}

type bodyKey struct{}

// body is a request's body that remembers why it could not be read: grpc-gateway keeps only the text.
type body struct {
	io.ReadCloser
	err error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// bodyError is why the request's body could not be read, or nil.
func bodyError(ctx context.Context) error {
	if b, ok := ctx.Value(bodyKey{}).(*body); ok {
		return b.err
	}
	return nil
}

// carriesFile tells the routes whose body is a file, or a form of files.
func carriesFile(path string) bool {
	return strings.HasSuffix(path, "/files/write") || strings.HasSuffix(path, "/files/stream/write")
}

// legible refuses paths and queries that are not UTF-8: no message could carry them.
func (s *Server) legible(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, err := url.QueryUnescape(r.URL.RawQuery)
		if err != nil || !utf8.ValidString(query) || !utf8.ValidString(r.URL.Path) {
			s.fail(w, r, apierr.E(codes.InvalidArgument, "INVALID_URL", "path and query must be UTF-8, with %-escapes"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// understood refuses queries that have what the operation does not know.
func (s *Server) understood(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.routes.foreign(r.Method, r.URL.Path, r.URL.Query()); err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// limited bounds bodies and refuses those that are not JSON, but where a file is carried.
func limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if carriesFile(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		if kind := r.Header.Get("Content-Type"); kind != "" && r.ContentLength != 0 {
			if t, _, err := mime.ParseMediaType(kind); err != nil || t != "application/json" {
				p, _ := explain(r.Context(), refusal{http.StatusUnsupportedMediaType, apierr.E(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
					fmt.Sprintf("the body must be application/json, not %q", kind))})
				writeProblem(w, p)
				return
			}
		}
		b := &body{ReadCloser: http.MaxBytesReader(w, r.Body, maxBody)}
		r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, b))
		r.Body = b
		next.ServeHTTP(w, r)
	})
}
