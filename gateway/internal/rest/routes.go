package rest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/coveyhq/covey/gateway/internal/apidoc"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// routes are the paths of the API as documented, each with its methods. They name requests in logs, the methods of a path in 405 answers, and
// what a query may have.
type routes []route

type route struct {
	path     string
	segments []string
	methods  []string
	queries  map[string][]string // names of query parameters by method
}

func documented() (routes, error) {
	paths, err := apidoc.Paths()
	if err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	names, err := apidoc.Queries()
	if err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	var out routes
	for path, methods := range paths {
		queries := map[string][]string{}
		for _, m := range methods {
			queries[m] = names[m+" "+path]
		}
		out = append(out, route{path, strings.Split(path, "/"), methods, queries})
	}
	// Literal segments first, so that the more special path is found.
	slices.SortFunc(out, func(a, b route) int {
		return strings.Compare(strings.ReplaceAll(a.path, "{", "\uffff"), strings.ReplaceAll(b.path, "{", "\uffff"))
	})
	return out, nil
}

// find returns the documented path that a request's path is of, and its methods; "other" and none if there is none.
func (rs routes) find(path string) (string, []string) {
	r := rs.of(path)
	return r.path, r.methods
}

func (rs routes) of(path string) route {
	segments := strings.Split(path, "/")
	for _, r := range rs {
		if len(r.segments) == len(segments) && slices.EqualFunc(r.segments, segments, matches) {
			return r
		}
	}
	return route{path: "other"}
}

// foreign is the error for a query that has what the operation does not know: it would be left out of account, and a list whose filter is
// misspelt be a list of everything.
func (rs routes) foreign(method, path string, query url.Values) error {
	known, ok := rs.of(path).queries[method]
	if !ok {
		return nil // There is another answer to that.
	}
	for name := range query {
		if slices.Contains(known, snake(name)) {
			continue
		}
		switch {
		case len(known) > 0:
			return apierr.Field(name, "is not known in this query; known are "+strings.Join(known, ", "))
		case method == http.MethodGet || method == http.MethodDelete:
			return apierr.Field(name, "is not known: there is nothing that this query may have")
		}
		return apierr.Field(name, "is not known: there is nothing that this query may have; fields go into the body")
	}
	return nil
}

// snake writes a name as the proto files do; in queries as in bodies JSON's "pageSize" means page_size too.
func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func matches(pattern, segment string) bool {
	return pattern == segment || strings.HasPrefix(pattern, "{") && segment != ""
}
