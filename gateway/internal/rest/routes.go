package rest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coveyhq/covey/gateway/internal/apidoc"
)

// routes are the paths of the API as documented, each with its methods. They name requests in logs, and the methods of a path in 405 answers.
type routes []route

type route struct {
	path     string
	segments []string
	methods  []string
}

func documented() (routes, error) {
	paths, err := apidoc.Paths()
	if err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	var out routes
	for path, methods := range paths {
		out = append(out, route{path, strings.Split(path, "/"), methods})
	}
	// Literal segments first, so that the more special path is found.
	slices.SortFunc(out, func(a, b route) int {
		return strings.Compare(strings.ReplaceAll(a.path, "{", "\uffff"), strings.ReplaceAll(b.path, "{", "\uffff"))
	})
	return out, nil
}

// find returns the documented path that a request's path is of, and its methods; "other" and none if there is none.
func (rs routes) find(path string) (string, []string) {
	segments := strings.Split(path, "/")
	for _, r := range rs {
		if len(r.segments) == len(segments) && slices.EqualFunc(r.segments, segments, matches) {
			return r.path, r.methods
		}
	}
	return "other", nil
}

func matches(pattern, segment string) bool {
	return pattern == segment || strings.HasPrefix(pattern, "{") && segment != ""
}
