package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// problem is an error as clients see it: {"error": {...}}.
type problem struct {
	// Code is gRPC's name of the kind of error, like "NOT_FOUND".
	Code string `json:"code"`
	// Reason is what programs switch on, like "SANDBOX_NOT_FOUND".
	Reason string `json:"reason"`
	// Message is for people.
	Message string `json:"message"`
	// Details are the error's own data, like the field that is wrong.
	Details map[string]string `json:"details"`
	// RequestID is found in the logs.
	RequestID string `json:"request_id"`

	status     int
	retryAfter int // seconds; 0 means not said
}

// httpStatus is the HTTP status of each gRPC code.
var httpStatus = map[codes.Code]int{
	codes.Canceled: 499, codes.Unknown: 500, codes.InvalidArgument: 400, codes.DeadlineExceeded: 504, codes.NotFound: 404, codes.AlreadyExists: 409,
	codes.PermissionDenied: 403, codes.Unauthenticated: 401, codes.ResourceExhausted: 429, codes.FailedPrecondition: 409, codes.Aborted: 409,
	codes.OutOfRange: 400, codes.Unimplemented: 501, codes.Internal: 500, codes.Unavailable: 503, codes.DataLoss: 500,
}

// codeNames are gRPC's names of codes.
var codeNames = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS", codes.PermissionDenied: "PERMISSION_DENIED",
	codes.Unauthenticated: "UNAUTHENTICATED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED", codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE", codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL",
	codes.Unavailable: "UNAVAILABLE", codes.DataLoss: "DATA_LOSS",
}

// refusal is an error of HTTP alone: one whose status no gRPC code has.
type refusal struct {
	status int
	err    error // a status
}

func (r refusal) Error() string { return r.err.Error() }

// explain makes of any error what the client is told. What is not meant for clients stays out: it is internal, and logged.
func explain(ctx context.Context, err error) (p problem, internal bool) {
	var ref refusal
	var source sourceError
	var tooLarge *http.MaxBytesError
	if revoked := access.Ended(ctx); revoked != nil {
		err = revoked // Whatever that made of the call.
	}
	switch {
	case errors.As(err, &tooLarge):
		ref = refusal{http.StatusRequestEntityTooLarge, apierr.E(codes.InvalidArgument, "BODY_TOO_LARGE",
			fmt.Sprintf("the body must have at most %d bytes; larger files go through files/stream/write", tooLarge.Limit), "limit_bytes", strconv.FormatInt(tooLarge.Limit, 10))}
		err = ref.err
	case errors.As(err, &ref):
		err = ref.err
	case errors.As(err, &source):
		err = apierr.E(codes.InvalidArgument, "BODY_CUT_OFF", "the body ended too early or could not be read: "+source.Error())
	case errors.Is(err, context.Canceled):
		err = status.FromContextError(context.Canceled).Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = status.FromContextError(context.DeadlineExceeded).Err()
	}
	st, isStatus := status.FromError(err)
	info := apierr.Info(err)
	if !isStatus || info == nil && (st.Code() == codes.Unknown || st.Code() == codes.Internal) {
		internal, st = true, status.New(codes.Internal, "internal error; the log has it under the request id")
	} else if info == nil && st.Code() == codes.Unavailable {
		internal, st = true, status.New(codes.Unavailable, "a part of the mesh that this call needs cannot be reached now; try again")
	}
	p = problem{
		Code: codeNames[st.Code()], Reason: info.GetReason(), Message: st.Message(), Details: info.GetMetadata(), RequestID: tenant.RequestID(ctx),
		status: httpStatus[st.Code()],
	}
	if p.Reason == "" {
		p.Reason = p.Code
	}
	if p.Details == nil {
		p.Details = map[string]string{}
	}
	if ref.status != 0 {
		p.status = ref.status
	}
	p.retryAfter = retryAfter(st, p.status)
	return p, internal
}

// retryAfter is what the status says, or a second where trying again makes sense.
func retryAfter(st *status.Status, http int) int {
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return max(1, int((r.GetRetryDelay().AsDuration()+999_999_999)/1_000_000_000))
		}
	}
	if http == 429 || http == 503 {
		return 1
	}
	return 0
}

// fail answers a request with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if begun(w) {
		// The status is out. A connection that breaks is the only way left to say that the body is not whole.
		s.Log.WarnContext(r.Context(), "answer broken off", "path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
	p, internal := explain(r.Context(), err)
	if internal {
		s.Log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
	}
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p problem) {
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="covey"`)
	}
	w.WriteHeader(p.status)
	w.Write(p.json()) // An error is the client's going away.
}

func (p problem) json() []byte {
	b, err := json.Marshal(map[string]problem{"error": p})
	if err != nil {
		panic(err) // Strings alone.
	}
	return b
}

// rpcError is a runtime.ErrorHandlerFunc. Errors without details come from grpc-gateway's own decoding of the request.
func (s *Server) rpcError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if st, ok := status.FromError(err); ok && st.Code() == codes.InvalidArgument && len(st.Details()) == 0 {
		err = malformed(st.Message())
		if cause := bodyError(r.Context()); cause != nil {
			err = cause
		}
	}
	s.fail(w, r, err)
}

// routingError is a runtime.RoutingErrorHandlerFunc.
func (s *Server) routingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	switch code {
	case http.StatusMethodNotAllowed:
		_, allowed := s.routes.find(r.URL.Path)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		s.fail(w, r, refusal{code, apierr.E(codes.Unimplemented, "METHOD_NOT_ALLOWED",
			fmt.Sprintf("%s is not a method of %s; it has %s", r.Method, r.URL.Path, strings.Join(allowed, ", ")))})
	case http.StatusNotFound:
		s.fail(w, r, noRoute(r))
	default:
		s.fail(w, r, refusal{code, apierr.E(codes.InvalidArgument, "BAD_REQUEST", "the request's path cannot be understood")})
	}
}

func noRoute(r *http.Request) error {
	return apierr.E(codes.NotFound, "NO_SUCH_ROUTE", fmt.Sprintf("there is no %s %s; /docs lists what there is", r.Method, r.URL.Path))
}

// Messages of protojson and grpc-gateway's reading of queries, with the field that they name.
var fieldIn = []*regexp.Regexp{
	regexp.MustCompile(`unknown field "([^"]+)"`),
	regexp.MustCompile(`invalid value for \w+ field (\w+)`),
	regexp.MustCompile(`duplicate field "([^"]+)"`),
	regexp.MustCompile(`parsing (?:field|list) "([^"]+)"`),
	regexp.MustCompile(`parameter: (\w+)`),
}

// malformed is the error for a request that could not be read, from the decoder's message.
func malformed(message string) error {
	message = plain(message)
	if path, rest, ok := cutField(message); ok {
		return apierr.Field(path, rest)
	}
	for _, re := range fieldIn {
		if m := re.FindStringSubmatch(message); m != nil {
			return apierr.Field(m[1], wanted(strings.TrimPrefix(message, m[0]+": ")))
		}
	}
	return apierr.E(codes.InvalidArgument, "INVALID_JSON", "the body is not the JSON expected here: "+message)
}
