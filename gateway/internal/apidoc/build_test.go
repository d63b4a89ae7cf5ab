package apidoc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a mapping of the document.
type object = map[string]any

// written is the document in the order that people read it in.
type written struct {
	OpenAPI    string `yaml:"openapi"`
	Info       any    `yaml:"info"`
	Servers    any    `yaml:"servers"`
	Security   any    `yaml:"security"`
	Tags       any    `yaml:"tags"`
	Paths      any    `yaml:"paths"`
	Components any    `yaml:"components"`
}

// tags are our names of services.
var tags = map[string]string{
	"SandboxService": "Sandboxes", "ProcessService": "Processes", "FileService": "Files", "SnapshotService": "Snapshots",
	"HostsService": "Hosts", "OperationsService": "Hosts", "KeyService": "Keys", "TenantService": "Tenants",
}

// build makes the document of the generated pieces and what is written by hand.
func build(byhand string, pieces string) ([]byte, error) {
	var d object
	b, err := os.ReadFile(byhand)
	if err == nil {
		err = yaml.Unmarshal(b, &d)
	}
	if err != nil {
		return nil, err
	}
	// Through JSON, so that what aliases share is not.
	if d, err = copied(d); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(pieces, "covey/*/v1/*.openapi.json"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no pieces in %s", pieces)
	}
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var piece object
		if err := json.Unmarshal(b, &piece); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		merge(d, piece)
	}
	if err := finish(d); err != nil {
		return nil, err
	}
	var out strings.Builder
	out.WriteString("# Made by `go test ./gateway/internal/apidoc -update`. Do not edit.\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err = enc.Encode(written{"3.1.0", d["info"], d["servers"], []object{{"bearer": []any{}}, {"apiKey": []any{}}}, d["tags"], d["paths"], d["components"]})
	return []byte(out.String()), err
}

func copied(d object) (out object, err error) {
	b, err := json.Marshal(d)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
}

// merge adds a generated piece; what is there already stays.
func merge(d, piece object) {
	paths := d["paths"].(object)
	for path, operations := range piece["paths"].(object) {
		if paths[path] == nil {
			paths[path] = object{}
		}
		for method, op := range operations.(object) {
			if paths[path].(object)[method] == nil {
				paths[path].(object)[method] = operation(op.(object))
			}
		}
	}
	schemas := d["components"].(object)["schemas"].(object)
	for name, s := range piece["components"].(object)["schemas"].(object) {
		schemas[name] = renamed(s)
	}
}

// operation brings a generated operation to the names that the gateway uses.
func operation(op object) object {
	op = renamed(op).(object)
	op["tags"] = []any{tags[op["tags"].([]any)[0].(string)]}
	if s, ok := op["summary"].(string); ok {
		// "ListFiles lists a directory" is for those who read the proto file.
		_, rest, _ := strings.Cut(s, " ")
		op["summary"] = strings.ToUpper(rest[:1]) + rest[1:]
	}
	var params []any
	for _, p := range asList(op["parameters"]) {
		p := p.(object)
		if name := p["name"].(string); !strings.Contains(name, "[") { // Maps in a query have no name of their own.
			p["name"] = snake(name)
			params = append(params, p)
		}
	}
	if op["parameters"] = params; params == nil {
		delete(op, "parameters")
	}
	if body, ok := dig(op, "requestBody", "content", "application/json", "schema").(object); ok && body["properties"] != nil {
		body["additionalProperties"] = false
	}
	return op
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}

func dig(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(object)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

var upper = regexp.MustCompile(`[A-Z]`)

// snake is a field's name in its proto file, from its JSON name.
func snake(s string) string {
	return upper.ReplaceAllStringFunc(s, func(c string) string { return "_" + strings.ToLower(c) })
}

// renamed gives all properties below v their names in proto files.
func renamed(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = renamed(v[i])
		}
	case object:
		for k := range v {
			v[k] = renamed(v[k])
		}
		if props, ok := v["properties"].(object); ok {
			out := object{}
			for name, p := range props {
				out[snake(name)] = p
			}
			v["properties"] = out
		}
	}
	return v
}

// finish adds errors and examples to every operation.
func finish(d object) error {
	examples := d["examples"].(object)
	used := map[string]bool{}
	for path, operations := range d["paths"].(object) {
		for _, op := range operations.(object) {
			op := op.(object)
			id := op["operationId"].(string)
			if strings.HasPrefix(path, "/v1/") {
				responses := op["responses"].(object)
				for status, ref := range map[string]string{"401": "Unauthorized", "429": "TooMany", "4XX": "BadRequest", "5XX": "ServerError"} {
					responses[status] = object{"$ref": "#/components/responses/" + ref}
				}
			}
			if e, ok := examples[id].(object); ok {
				used[id] = true
				exemplify(op, e)
			}
		}
	}
	for id := range examples {
		if !used[id] {
			return fmt.Errorf("examples: there is no operation %s", id)
		}
	}
	return nil
}

func exemplify(op, e object) {
	for _, p := range asList(op["parameters"]) {
		p := p.(object)
		name, _ := p["name"].(string)
		if v := dig(e, "parameters", name); v != nil {
			p["example"] = v
		}
	}
	if c, ok := dig(op, "requestBody", "content", "application/json").(object); ok && e["body"] != nil {
		c["example"] = e["body"]
	}
	for _, kind := range []string{"application/json", "application/x-ndjson"} {
		if c, ok := dig(op, "responses", "200", "content", kind).(object); ok && e["answer"] != nil {
			c["example"] = e["answer"]
		}
	}
}
