package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func FuzzBodiesAreReadOrRefusedAsTheClientsMistake(f *testing.F) {
	for _, s := range []string{`{}`, ``, ` `, `{"vcpus":"x"}`, `{"vcpus":1}{}`, `{"metadata":{"a":1}}`, `[`, "\x00", `{"vcpus":1e400}`, `{"network":{"x":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := decode(bytes.NewReader(b), &sandboxv1.CreateSandboxRequest{})
		if err == nil {
			return
		}
		if p, internal := explain(context.Background(), err); internal || p.status != 400 || !json.Valid(p.json()) {
			t.Errorf("%q: %d %s", b, p.status, p.json())
		}
	})
}

func FuzzQueriesOfUploadsAreReadOrRefusedByField(f *testing.F) {
	for _, s := range []string{"path=x", "mode=0644&append=true", "mode=9", "make_parents=maybe", "%zz", "path=a&path=b", "&&=", "mode=-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, q string) {
		v, err := url.ParseQuery(q)
		if err != nil {
			return
		}
		h, err := headerFrom(v, &guestv1.WriteFileHeader{})
		if err == nil && h.GetMode() > 0o7777 {
			t.Errorf("%q gives mode %o", q, h.GetMode())
		}
		if err != nil {
			if p, _ := explain(context.Background(), err); p.status != 400 || p.Reason != "INVALID_FIELD" {
				t.Errorf("%q: %d %s", q, p.status, p.json())
			}
		}
	})
}

func TestFillTellsTheEndOfASourceFromOneThatWasCutOff(t *testing.T) {
	b := make([]byte, 10)
	for name, c := range map[string]struct {
		src io.Reader
		n   int
		err error
	}{
		"full":         {strings.NewReader("0123456789x"), 10, nil},
		"byte by byte": {iotest.OneByteReader(strings.NewReader("0123456789x")), 10, nil},
		"short":        {strings.NewReader("01"), 2, io.EOF},
		"cut off":      {io.MultiReader(strings.NewReader("01"), iotest.ErrReader(io.ErrUnexpectedEOF)), 2, io.ErrUnexpectedEOF},
	} {
		if n, err := fill(b, c.src); n != c.n || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

func TestNothingOfAnUnforeseenErrorGetsOut(t *testing.T) {
	for _, err := range []error{
		errors.New("hunter2"), status.Error(codes.Unavailable, "dial tcp 10.0.0.7: hunter2"), status.Error(codes.Internal, "hunter2"), status.Error(codes.Unknown, "hunter2"),
	} {
		p, internal := explain(context.Background(), err)
		if !internal || strings.Contains(string(p.json()), "hunter2") || p.status < 500 {
			t.Errorf("%v: %d %s", err, p.status, p.json())
		}
	}
}
