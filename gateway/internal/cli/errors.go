package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes.
const (
	failed     = 1
	wrongUsage = 2
)

// code prints an error and is the exit code for it.
func (a *app) code(err error) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintln(a.err, "covey:", strings.TrimSpace(err.Error()))
		return wrongUsage
	}
	for _, err := range all(err) {
		if a.output == "json" {
			fmt.Fprintln(a.err, problemJSON(err))
		} else {
			fmt.Fprintln(a.err, "covey:", a.explain(err))
		}
	}
	return failed
}

// all are the errors that were joined to one.
func all(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// explain makes an error readable: its message, what to do next, and the request id to look for in the logs where it is a fault of Covey's.
func (a *app) explain(err error) string {
	var of about
	if errors.As(err, &of) {
		if text := a.explain(of.error); !strings.Contains(text, of.what) {
			return of.what + ": " + text
		}
		return a.explain(of.error)
	}
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	msg, info := s.Message(), infoOf(s)
	if s.Code() == codes.Unavailable && info == nil { // Not an answer of the gateway: there was none.
		msg = fmt.Sprintf("no answer from the gateway at %s: %s", a.url, cause(msg))
	}
	if id := info.GetMetadata()["request_id"]; id != "" && !strings.Contains(msg, id) && ours(s.Code()) {
		msg += " (request " + id + ")"
	}
	if next := nextStep(s, info); next != "" {
		msg += "\n" + next
	}
	return msg
}

// ours tells codes of what is no fault of the caller's.
func ours(c codes.Code) bool {
	switch c {
	case codes.Internal, codes.Unknown, codes.Unavailable, codes.DataLoss, codes.DeadlineExceeded, codes.Aborted:
		return true
	}
	return false
}

var dialing = regexp.MustCompile(`desc = "(?:transport: )?(?:Error while dialing: )?(.*)"$`)

// cause is the part of gRPC's message about a connection that people can use.
func cause(message string) string {
	if m := dialing.FindStringSubmatch(message); m != nil {
		return m[1]
	}
	return message
}

func infoOf(s *status.Status) *errdetails.ErrorInfo {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// steps are what to do about errors, by their reason.
var steps = map[string]string{
	"SANDBOX_NOT_FOUND":    "`covey ls` lists the sandboxes that there are.",
	"SNAPSHOT_NOT_FOUND":   "`covey snapshot ls` lists the templates.",
	"KEY_NOT_FOUND":        "`covey keys ls` lists the keys.",
	"HOST_UNKNOWN":         "`covey hosts` lists the hosts.",
	"HOST_NOT_FOUND":       "`covey hosts` lists the hosts.",
	"PROCESS_NOT_FOUND":    "`covey ps SANDBOX` lists its processes.",
	"FILE_NOT_FOUND":       "`covey files ls SANDBOX:PATH` lists a directory.",
	"DIRECTORY_NOT_EMPTY":  "-r removes a directory with all in it.",
	"FILE_EXISTS":          "-f replaces it.",
	"NO_CAPACITY":          "`covey place --explain` says why; `covey pause` or `covey rm` makes room.",
	"QUOTA_EXCEEDED":       "`covey usage` shows the quota; `covey rm`, `covey pause` or `covey snapshot rm` makes room in it.",
	"RATE_LIMITED":         "Wait a moment and try again.",
	"MISSING_SCOPE":        "`covey keys create --scope` makes a key that may, with a key of scope admin.",
	"ADMIN_ONLY":           "Use a key of scope admin.",
	"SNAPSHOT_IN_USE":      "`covey snapshot why` tells what needs it.",
	"NAME_TAKEN":           "`covey snapshot ls` lists the names; `covey snapshot rm` or `rename` frees one.",
	"SNAPSHOT_NOT_DURABLE": "Try again in some seconds, when the registry has it.",
	"RESUME_TOKEN_EXPIRED": "Watch again without --resume-token.",
	"CONCURRENT_CHANGE":    "Look at it with `covey get`, and try again.",
	"PORT_CLOSED":          "Does the program listen? `covey ps SANDBOX` lists what was started.",
}

// lists are the commands that list what a field of a request names.
var lists = map[string]string{
	"sandbox_id": "`covey ls` lists the sandboxes that there are.", "snapshot_id": "`covey snapshot ls` lists the templates.", "key_id": "`covey keys ls` lists the keys.",
}

// nextStep is what to do about an error, where that is known.
func nextStep(s *status.Status, info *errdetails.ErrorInfo) string {
	if step := steps[info.GetReason()]; step != "" {
		return step
	}
	switch info.GetReason() {
	case "INVALID_FIELD":
		return lists[info.GetMetadata()["field"]]
	case "TEMPLATE_NOT_FOUND":
		if !strings.Contains(s.Message(), "covey snapshot ls") {
			return "`covey snapshot ls` lists the templates."
		}
		return ""
	case "SANDBOX_NOT_RUNNING", "NOT_RUNNING":
		if strings.Contains(s.Message(), "PAUSED") {
			return "`covey resume` starts it again."
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		if info == nil {
			return "Is it running? `make up` starts a local mesh; --url or COVEY_URL names another."
		}
		return "A part of the mesh is out of reach; try again."
	case codes.Unauthenticated:
		return "Set COVEY_API_KEY or --api-key to a valid key, or keep one with `covey auth login`."
	case codes.Unimplemented:
		if info == nil {
			return "Is this the gateway? --url or COVEY_URL names it."
		}
	}
	return ""
}

// problem is an error as the API's HTTP side writes it.
type problem struct {
	Code      string            `json:"code"`
	Reason    string            `json:"reason"`
	Message   string            `json:"message"`
	Details   map[string]string `json:"details"`
	RequestID string            `json:"request_id"`
}

// problemJSON is an error for programs, in the one shape that errors have.
func problemJSON(err error) string {
	p := problem{Code: "UNKNOWN", Reason: "CLI_ERROR", Message: err.Error(), Details: map[string]string{}}
	if s, ok := status.FromError(err); ok {
		info := infoOf(s)
		p.Code, p.Reason, p.Message = code.Code(s.Code()).String(), info.GetReason(), s.Message()
		maps.Copy(p.Details, info.GetMetadata())
		p.RequestID = p.Details["request_id"]
		delete(p.Details, "request_id")
		if p.Reason == "" {
			p.Reason = p.Code
		}
	}
	b, err := json.Marshal(map[string]problem{"error": p})
	if err != nil {
		panic(err) // Strings alone.
	}
	return string(b)
}

// problemOf makes the error of an answer of the HTTP side, so that it is treated as those of gRPC are.
func problemOf(body []byte, httpStatus string) error {
	var in struct{ Error problem }
	if json.Unmarshal(body, &in) != nil || in.Error.Message == "" {
		return fmt.Errorf("the gateway answered %s", httpStatus)
	}
	p := in.Error
	if p.Details == nil {
		p.Details = map[string]string{}
	}
	p.Details["request_id"] = p.RequestID
	s, err := status.New(codes.Code(code.Code_value[p.Code]), p.Message).WithDetails(&errdetails.ErrorInfo{Reason: p.Reason, Domain: "covey.dev", Metadata: p.Details})
	if err != nil {
		return errors.New(p.Message)
	}
	return s.Err()
}
