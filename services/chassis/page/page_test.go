package page_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/coveyhq/covey/services/chassis/page"
)

type answer struct{ items, next string }

func (a answer) GetNextPageToken() string { return a.next }

func TestPagesAreAskedForUntilTheLastAnErrorOrTheReadersEnd(t *testing.T) {
	list := map[string]answer{"": {"ab", "1"}, "1": {"cd", "2"}, "2": {"e", ""}}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		first, breaks, stop string
		items               string
		asked               []string
	}{
		"all":              {breaks: "-", items: "abcde", asked: []string{"", "1", "2"}},
		"from one on":      {first: "1", breaks: "-", items: "cde", asked: []string{"1", "2"}},
		"an error":         {breaks: "1", items: "ab", asked: []string{"", "1"}},
		"the reader's end": {breaks: "-", stop: "cd", items: "abcd", asked: []string{"", "1"}},
	} {
		token, items, asked := c.first, "", []string(nil)
		var failed error
		for p, err := range page.Each(&token, func() (answer, error) {
			asked = append(asked, token)
			if token == c.breaks {
				return answer{}, broken
			}
			return list[token], nil
		}) {
			if err != nil {
				failed = err
				continue
			}
			if items += p.items; p.items == c.stop {
				break
			}
		}
		if items != c.items || !slices.Equal(asked, c.asked) || errors.Is(failed, broken) != (name == "an error") {
			t.Errorf("%s: read %q, asked for %q, %v", name, items, asked, failed)
		}
	}
}
