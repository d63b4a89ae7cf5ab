// Package page reads lists that come in pages (page_size, page_token, next_page_token).
package page

import "iter"

// Answer is a page, and tells which is the next.
type Answer interface {
	// GetNextPageToken is empty after the last page.
	GetNextPageToken() string
}

// Each asks for page after page. token is that of the request which ask makes, and is set before each: empty, or as it was given, for the first. An
// error is the last thing that it yields.
func Each[P Answer](token *string, ask func() (P, error)) iter.Seq2[P, error] {
	return func(yield func(P, error) bool) {
		for {
			p, err := ask()
			if !yield(p, err) || err != nil {
				return
			}
			if *token = p.GetNextPageToken(); *token == "" {
				return
			}
		}
	}
}
