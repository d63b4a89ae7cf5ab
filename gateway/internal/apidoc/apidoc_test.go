package apidoc

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write openapi.yaml")

func TestTheDocumentIsMadeOfTheGeneratedPiecesAndWhatIsWrittenByHand(t *testing.T) {
	want, err := build("byhand.yaml", "../../../proto/gen/openapi")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("openapi.yaml", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, document) {
		t.Fatal("openapi.yaml is out of date: go test ./gateway/internal/apidoc -update")
	}
}

// eachOperation calls f for every operation of the document.
func eachOperation(t *testing.T, f func(name string, op object)) {
	t.Helper()
	var d struct{ Paths map[string]map[string]object }
	if err := yaml.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	for path, operations := range d.Paths {
		for method, op := range operations {
			f(strings.ToUpper(method)+" "+path, op)
		}
	}
}

func TestEveryOperationHasAnExampleAndItsErrors(t *testing.T) {
	ids := map[string]string{}
	eachOperation(t, func(name string, op object) {
		id, _ := op["operationId"].(string)
		if other := ids[id]; id == "" || other != "" {
			t.Errorf("%s: operation id %q, which %s has", name, id, other)
		}
		ids[id] = name
		if content, ok := dig(op, "responses", "200", "content").(object); ok && !hasExample(content) {
			t.Errorf("%s: no example of its answer", name)
		}
		if content, ok := dig(op, "requestBody", "content").(object); ok && !hasExample(content) {
			t.Errorf("%s: no example of its body", name)
		}
		if strings.Contains(name, " /v1/") && (dig(op, "responses", "4XX") == nil || dig(op, "responses", "5XX") == nil || dig(op, "responses", "401") == nil) {
			t.Errorf("%s: errors are missing", name)
		}
	})
}

func hasExample(content object) bool {
	for _, c := range content {
		if dig(c, "example") != nil {
			return true
		}
	}
	return false
}

func TestEveryReferenceHasItsTarget(t *testing.T) {
	var d object
	if err := yaml.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case object:
			if ref, ok := v["$ref"].(string); ok && dig(d, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...) == nil {
				t.Errorf("%s is not there", ref)
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(d)
}

func TestTheDocumentIsAlsoJSON(t *testing.T) {
	if b := JSON(); !bytes.HasPrefix(b, []byte(`{"`)) || !bytes.Contains(b, []byte(`"openapi":"3.1.0"`)) {
		t.Fatalf("it begins %.100s", b)
	}
}
