package gateway_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"github.com/coveyhq/covey/gateway/internal/apidoc"
)

// documented is the API's description, as a validator of answers.
var documented = sync.OnceValues(func() (validator.Validator, []error) {
	doc, err := libopenapi.NewDocument(apidoc.YAML())
	if err != nil {
		return nil, []error{err}
	}
	return validator.NewValidator(doc)
})

func TestTheDescriptionIsValidOpenAPI(t *testing.T) {
	v, errs := documented()
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, problems := v.ValidateDocument(); !ok {
		for _, p := range problems {
			t.Errorf("%s: %s", p.Message, p.Reason)
			for _, s := range p.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
}

// mu guards the validator, which compiles as it goes.
var mu sync.Mutex

// conforms fails the test if an answer is not as the description says. Every answer of every test goes through here.
func conforms(t testing.TB, req *http.Request, res *http.Response, body []byte) {
	t.Helper()
	if _, measuring := t.(*testing.B); measuring {
		return
	}
	if res.Header.Get("Content-Type") == "application/x-ndjson" {
		return // Many documents: the validator reads one.
	}
	if strings.Contains(string(body), "NO_SUCH_ROUTE") || strings.Contains(string(body), "METHOD_NOT_ALLOWED") || !strings.HasPrefix(req.URL.Path, "/v1/") {
		return
	}
	v, errs := documented()
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	mu.Lock()
	defer mu.Unlock()
	shown := *res
	shown.Body = io.NopCloser(bytes.NewReader(body))
	if ok, problems := v.ValidateHttpResponse(req, &shown); !ok {
		for _, p := range problems {
			t.Errorf("%s %s: %d is not as documented: %s: %s", req.Method, req.URL.Path, res.StatusCode, p.Message, p.Reason)
			for _, s := range p.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
}
