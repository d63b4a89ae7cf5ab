package rest

import (
	"strings"
	"testing"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

func TestWhatIsWrongInABodyIsNamedAsTheClientWroteIt(t *testing.T) {
	for body, want := range map[string][2]string{
		`{"timeout_sec":-1}`: {"timeout_sec", "must be of type uint32, got -1 (line 1:16)"},
		`{"timeoutSec":"x"}`: {"timeoutSec", "must be of type uint32, got \"x\" (line 1:15)"},
		"{\n \"template\": \"ääääää\", \"metadata\":{\"b\":\"c\",\"a\":1}}": {"metadata.a", "must be of type string, got 1 (line 2:48)"},
		`{"network":{"allow":[]}}`:                       {"network.allow", "is not known here; known are "},
		`{"image":"base"}`:                               {"image", "template, vcpus"},
		`{"vcpus":1,"vcpus":2}`:                          {"vcpus", "duplicate field"},
		`{"env":["A"]}`:                                  {"env", "unexpected token ["},
		`{"network":{"allow_cidrs":["10.0.0.0/8",[1]]}}`: {"network.allow_cidrs", "got ["},
		`{"a\"b: \u0000":{"c":1}}`:                       {"a\"b: \x00", "is not known here"},
		`[]`:                                             {"", ""},
		`{"vcpus":1`:                                     {"", ""},
		"{\"template\":\"\xff\"}":                        {"", ""},
		`null`:                                           {"", ""},
	} {
		err := decode(strings.NewReader(body), &sandboxv1.CreateSandboxRequest{})
		info := apierr.Info(err)
		if wrong := want[0] == ""; wrong != (info.GetReason() == "INVALID_JSON") {
			t.Errorf("%s: %v", body, err)
		}
		if info.GetMetadata()["field"] != want[0] || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("%s: field %q, %v", body, info.GetMetadata()["field"], err)
		}
	}
}
