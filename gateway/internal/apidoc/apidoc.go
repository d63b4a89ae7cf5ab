// Package apidoc holds the OpenAPI description of the gateway's HTTP API.
//
// openapi.yaml is made of the pieces in proto/gen/openapi, which buf generates, and of byhand.yaml: what is not generated, and an
// example for each operation. After a change of either:
//
//	go test ./gateway/internal/apidoc -update
//
// The package's tests fail while the file is not what they give.
package apidoc

import (
	_ "embed"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

//go:embed openapi.yaml
var document []byte

// YAML is the document.
func YAML() []byte { return document }

// JSON is the document as JSON.
func JSON() []byte { return asJSON() }

var asJSON = sync.OnceValue(func() []byte {
	var v any
	if err := yaml.Unmarshal(document, &v); err != nil {
		panic("openapi.yaml: " + err.Error()) // It is in the binary and tested.
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic("openapi.yaml: " + err.Error())
	}
	return b
})

// methods are the keys of a path that are operations.
var methods = []string{"get", "put", "post", "delete", "patch", "head", "options"}

// Paths are the documented paths, each with its methods in upper case.
func Paths() (map[string][]string, error) {
	var d struct {
		Paths map[string]map[string]any `yaml:"paths"`
	}
	if err := yaml.Unmarshal(document, &d); err != nil {
		return nil, err
	}
	out := make(map[string][]string, len(d.Paths))
	for path, operations := range d.Paths {
		for method := range operations {
			if slices.Contains(methods, method) {
				out[path] = append(out[path], strings.ToUpper(method))
			}
		}
		slices.Sort(out[path])
	}
	return out, nil
}

// parameter is a parameter of an operation, or a reference to a shared one.
type parameter struct {
	Ref  string `json:"$ref"`
	Name string `json:"name"`
	In   string `json:"in"`
}

// Queries are the names that the query of each operation may have, by "METHOD path".
func Queries() (map[string][]string, error) {
	var d struct {
		Paths      map[string]map[string]json.RawMessage `json:"paths"`
		Components struct {
			Parameters map[string]parameter `json:"parameters"`
		} `json:"components"`
	}
	if err := json.Unmarshal(JSON(), &d); err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for path, operations := range d.Paths {
		var shared []parameter // of all methods of the path
		if raw := operations["parameters"]; raw != nil {
			if err := json.Unmarshal(raw, &shared); err != nil {
				return nil, err
			}
		}
		for method, raw := range operations {
			if !slices.Contains(methods, method) {
				continue
			}
			var operation struct {
				Parameters []parameter `json:"parameters"`
			}
			if err := json.Unmarshal(raw, &operation); err != nil {
				return nil, err
			}
			names := []string{}
			for _, p := range slices.Concat(shared, operation.Parameters) {
				if p.Ref != "" {
					p = d.Components.Parameters[p.Ref[strings.LastIndex(p.Ref, "/")+1:]]
				}
				if p.In == "query" {
					names = append(names, p.Name)
				}
			}
			out[strings.ToUpper(method)+" "+path] = names
		}
	}
	return out, nil
}
