package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// documentedAnswer is a row of docs/answers.md.
type documentedAnswer struct {
	code     string // gRPC's
	byHTTP   string // the code that HTTP shows, if another
	status   int    // HTTP's; 0 where it is gRPC's alone
	testName string
}

const root = "../.."

// documentedAnswers are the answers that docs/answers.md promises, by reason.
var documentedAnswers = sync.OnceValue(func() map[string]documentedAnswer {
	b, err := os.ReadFile(filepath.Join(root, "docs/answers.md"))
	if err != nil {
		panic(err)
	}
	all := map[string]documentedAnswer{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([A-Z_]+)(?:, by HTTP ([A-Z_]+))? \\| (\\d+|-) \\| .*\\| (\\w+|-) \\|$").FindAllStringSubmatch(string(b), -1) {
		n, _ := strconv.Atoi(m[4])
		all[m[1]] = documentedAnswer{m[2], m[3], n, m[5]}
	}
	return all
})

// refused fails unless a gRPC call was answered with a reason, and the code that is documented for it.
func refused(t *testing.T, err error, reason string) {
	t.Helper()
	want := documentedAnswers()[reason]
	if got := code.Code(status.Code(err)).String(); got != want.code || apierr.Reason(err) != reason {
		t.Errorf("got %v (%s), want %s %s", err, apierr.Reason(err), want.code, reason)
	}
}

// problem is an error as HTTP shows it.
type problem struct {
	Code, Reason, Message string
	Details               map[string]string
	RequestID             string `json:"request_id"`
}

// refused fails unless an HTTP call is answered with a reason, in the one shape that errors have and with the documented status.
func (c caller) refused(reason, method, path, body string, header ...string) problem {
	c.t.Helper()
	var sent io.Reader
	if body != "" {
		sent = strings.NewReader(body)
	}
	res := c.open(method, path, sent, header...)
	var p struct{ Error *problem }
	err := json.NewDecoder(res.Body).Decode(&p)
	want := documentedAnswers()[reason]
	if want.byHTTP == "" {
		want.byHTTP = want.code
	}
	if err != nil || p.Error == nil {
		c.t.Errorf("%s %s: %d is no error of Covey's: %v", method, path, res.StatusCode, err)
		return problem{}
	}
	e := *p.Error
	if e.Reason != reason || e.Code != want.byHTTP || res.StatusCode != want.status || e.Message == "" || e.Details == nil || e.RequestID == "" ||
		e.RequestID != res.Header.Get("X-Request-Id") || res.Header.Get("Content-Type") != "application/json" {
		c.t.Errorf("%s %s: %d %+v, want %d %s %s", method, path, res.StatusCode, e, want.status, want.byHTTP, reason)
	}
	if after, _ := strconv.Atoi(res.Header.Get("Retry-After")); (res.StatusCode == 429 || res.StatusCode == 503) && after < 1 {
		c.t.Errorf("%s %s: %d without Retry-After", method, path, res.StatusCode)
	}
	return e
}

// inside are reasons that no client of the gateway can meet, or that are no reasons at all.
var inside = []string{
	"CALLER_UNKNOWN", "CALLER_NOT_ALLOWED", // Between daemons.
	"ALREADY_FROZEN", "SANDBOX_NOT_HERE", // Between host agent, guest and relay.
	"CHECKSUM_MISMATCH", "OBJECTS_MISSING", "OBJECT_DIFFERS", "OBJECT_NOT_FOUND", "OBJECT_NOT_HERE", "SNAPSHOT_ID_TAKEN", "UPLOAD_TAKEN_OVER", "OUT_OF_RANGE", // Between host agents and the registry.
	"ILLEGAL_TRANSITION", "KEY_EXISTS", "REQUEST_NOT_FOUND", // Faults that are shown as INTERNAL, or never leave sandboxd.
	"CLI_ERROR", // The covey program's own.
}

func TestEveryReasonInTheSourceIsDocumented(t *testing.T) {
	known := documentedAnswers()
	if len(known) < 60 {
		t.Fatalf("docs/answers.md has %d answers", len(known))
	}
	// Where errors are made: apierr.E(codes.X, "REASON", Reason: "REASON", const reasonX = "REASON", and the guest's rules and answers.
	made := regexp.MustCompile(`(?:apierr\.E\(codes\.\w+, |Reason: +|[rR]eason\w* += |answer\(codes\.\w+, |codes\.\w+, )"([A-Z]+(?:_[A-Z]+)+)"`)
	seen := map[string]bool{}
	for _, dir := range []string{"services", "scheduler", "snapshotsvc", "hostagent", "gateway", "guest"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "test/") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range made.FindAllSubmatch(b, -1) {
				reason := string(m[1])
				if seen[reason] = true; known[reason].code == "" && !slices.Contains(inside, reason) {
					t.Errorf("%s answers %s, which docs/answers.md does not have", path, reason)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < 60 {
		t.Errorf("only %d reasons were found in the source", len(seen))
	}
}

func TestEveryDocumentedAnswerNamesATestThatThereIs(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/answers.md"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, pattern := range []string{"deploy/e2e/*_test.go", "deploy/chaos/*_test.go", "gateway/internal/*/*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(b)
		}
	}
	for _, name := range regexp.MustCompile(`\bTest\w+`).FindAllString(string(page), -1) {
		if !strings.Contains(source.String(), fmt.Sprintf("func %s(", name)) {
			t.Errorf("there is no %s", name)
		}
	}
}
