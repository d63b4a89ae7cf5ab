// Package apispec checks requests and answers against Firecracker's own description of its API, in tests.
//
// The description (OpenAPI 2.0) lies beside the repository, in shared/reference, and is not part of it.
package apispec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Spec is the description.
type Spec struct {
	Paths       map[string]map[string]*operation
	Definitions map[string]*schema
}

type operation struct {
	Parameters []struct {
		In       string
		Required bool
		Schema   *schema
	}
	Responses map[string]struct{ Schema *schema }
}

type schema struct {
	Ref        string `yaml:"$ref"`
	Type       string
	Required   []string
	Properties map[string]*schema
	Items      *schema
	Enum       []string
	Minimum    *float64
	Maximum    *float64
}

// Load reads the description, or ends the test with the sentence where it should be.
func Load(t testing.TB) *Spec {
	t.Helper()
	s := LoadIfThere(t)
	if s == nil {
		t.Skip("Firecracker's API description is to lie beside the repository, as shared/reference/firecracker-api.yaml")
	}
	return s
}

// LoadIfThere reads the description; nil where there is none.
func LoadIfThere(t testing.TB) *Spec {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	// From hostagent/internal/vmm/firecracker/api/apispec to beside the repository.
	path := filepath.Join(filepath.Dir(self), "../../../../../../../shared/reference/firecracker-api.yaml")
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Logf("not checked against Firecracker's API description: %v", err)
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var s Spec
	if err := yaml.Unmarshal(text, &s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return &s
}

func (s *Spec) operation(method, path string) (*operation, error) {
	for template, methods := range s.Paths {
		if fits(template, path) {
			if op := methods[strings.ToLower(method)]; op != nil {
				return op, nil
			}
			return nil, fmt.Errorf("%s %s: the path has no such method", method, path)
		}
	}
	return nil, fmt.Errorf("%s %s: no such path", method, path)
}

// fits tells whether a path is of a template like /drives/{drive_id}.
func fits(template, path string) bool {
	a, b := strings.Split(template, "/"), strings.Split(path, "/")
	return slices.EqualFunc(a, b, func(t, p string) bool { return t == p || strings.HasPrefix(t, "{") && p != "" })
}

// CheckRequest says what is wrong with a request.
func (s *Spec) CheckRequest(method, path string, body []byte) error {
	op, err := s.operation(method, path)
	if err != nil {
		return err
	}
	for _, p := range op.Parameters {
		if p.In != "body" {
			continue
		}
		if len(body) == 0 && p.Required {
			return fmt.Errorf("%s %s: has no body", method, path)
		}
		return s.checkText(method+" "+path, p.Schema, body)
	}
	if len(body) > 0 {
		return fmt.Errorf("%s %s: has a body, and must not", method, path)
	}
	return nil
}

// CheckAnswer says what is wrong with an answer.
func (s *Spec) CheckAnswer(method, path string, status int, body []byte) error {
	op, err := s.operation(method, path)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("answer %d of %s %s", status, method, path)
	r, ok := op.Responses[strconv.Itoa(status)]
	if !ok {
		if r, ok = op.Responses["default"]; !ok || status < 300 {
			return fmt.Errorf("%s: not described", where)
		}
	}
	if r.Schema == nil {
		if len(body) > 0 {
			return fmt.Errorf("%s: has the body %.100q, and must not", where, body)
		}
		return nil
	}
	return s.checkText(where, r.Schema, body)
}

func (s *Spec) checkText(where string, sch *schema, text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return s.check(where, sch, v)
}

func (s *Spec) check(where string, sch *schema, v any) error {
	if name, ok := strings.CutPrefix(sch.Ref, "#/definitions/"); ok {
		if s.Definitions[name] == nil {
			return fmt.Errorf("%s: the description has no %s", where, name)
		}
		return s.check(where, s.Definitions[name], v)
	}
	switch v := v.(type) {
	case map[string]any:
		return s.checkObject(where, sch, v)
	case []any:
		if sch.Type != "array" {
			return fmt.Errorf("%s: an array, want %s", where, sch.Type)
		}
		for i, item := range v {
			if err := s.check(fmt.Sprintf("%s[%d]", where, i), sch.Items, item); err != nil {
				return err
			}
		}
		return nil
	case string:
		if sch.Type != "string" {
			return fmt.Errorf("%s: the string %q, want %s", where, v, sch.Type)
		}
		if len(sch.Enum) > 0 && !slices.Contains(sch.Enum, v) {
			return fmt.Errorf("%s: %q, want one of %v", where, v, sch.Enum)
		}
		return nil
	case json.Number:
		return checkNumber(where, sch, v)
	case bool:
		if sch.Type != "boolean" {
			return fmt.Errorf("%s: a boolean, want %s", where, sch.Type)
		}
		return nil
	}
	return fmt.Errorf("%s: %v is of no type that the description has", where, v)
}

func (s *Spec) checkObject(where string, sch *schema, v map[string]any) error {
	if sch.Type != "object" {
		return fmt.Errorf("%s: an object, want %s", where, sch.Type)
	}
	for _, name := range sch.Required {
		if _, ok := v[name]; !ok {
			return fmt.Errorf("%s: %s is missing", where, name)
		}
	}
	for name, field := range v {
		if sch.Properties[name] == nil {
			return fmt.Errorf("%s: the description has no field %s", where, name)
		}
		if err := s.check(where+"."+name, sch.Properties[name], field); err != nil {
			return err
		}
	}
	return nil
}

func checkNumber(where string, sch *schema, v json.Number) error {
	n, err := v.Float64()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", where, err)
	case sch.Type != "integer" && sch.Type != "number" || sch.Type == "integer" && n != math.Trunc(n):
		return fmt.Errorf("%s: the number %v, want %s", where, v, sch.Type)
	case sch.Minimum != nil && n < *sch.Minimum || sch.Maximum != nil && n > *sch.Maximum:
		return fmt.Errorf("%s: %v is out of bounds", where, v)
	}
	return nil
}
