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
			if slices.Contains([]string{"get", "put", "post", "delete", "patch", "head", "options"}, method) {
				out[path] = append(out[path], strings.ToUpper(method))
			}
		}
		slices.Sort(out[path])
	}
	return out, nil
}
