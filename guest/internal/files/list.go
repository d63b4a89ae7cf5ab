package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Listing is one page of a directory.
type Listing struct {
	Files []File
	// Next is the path after which the next page begins; empty at the end.
	Next string
}

// ListOptions bound a listing.
type ListOptions struct {
	// Depth is how many levels to descend, at least 1.
	Depth int
	// Limit is the most files, and Bytes about the most bytes of paths, in one page.
	Limit, Bytes int
	// After is Listing.Next of the page before.
	After string
}

// entryCost is about what an entry takes in an answer besides its paths.
const entryCost = 80

// errFull ends a walk whose page is full.
var errFull = errors.New("page is full")

// List lists a directory and, by depth, those below it, each followed by what is in it, in the order of their names. What
// cannot be read below the directory itself is left out, as is what vanishes meanwhile.
func (a *Actor) List(p string, o ListOptions) (*Listing, error) {
	if p == "" {
		p = a.home()
	}
	p, err := a.Resolve("path", p)
	if err != nil {
		return nil, err
	}
	if o.After != "" && (o.After == p || !within(p, o.After)) {
		return nil, &PathError{"page_token", fmt.Sprintf("must be from a listing of %q", p)}
	}
	l := &lister{o: o, root: p}
	if err := a.do(func() error { return l.walk(p, 1) }); err != nil && !errors.Is(err, errFull) {
		return nil, err
	}
	return &l.page, nil
}

// within tells whether p is root or below it.
func within(root, p string) bool {
	return p == root || strings.HasPrefix(p, strings.TrimSuffix(root, "/")+"/")
}

type lister struct {
	o     ListOptions
	root  string
	page  Listing
	bytes int
}

func (l *lister) walk(dir string, level int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if level > 1 {
			return nil
		}
		return err
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if !l.passed(p) {
			if err := l.add(p, e); err != nil {
				return err
			}
		}
		if e.IsDir() && level < l.o.Depth && (!l.passed(p) || within(p, l.o.After)) {
			if err := l.walk(p, level+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// passed tells whether p was on an earlier page. The order is that of the walk: path elements compare one by one.
func (l *lister) passed(p string) bool {
	return l.o.After != "" && slices.Compare(strings.Split(p, "/"), strings.Split(l.o.After, "/")) <= 0
}

func (l *lister) add(p string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return nil
	}
	if len(l.page.Files) >= l.o.Limit || l.bytes >= l.o.Bytes {
		l.page.Next = l.page.Files[len(l.page.Files)-1].Path
		return errFull
	}
	f := describe(p, info)
	l.page.Files = append(l.page.Files, f)
	l.bytes += entryCost + len(f.Path) + len(f.Name()) + len(f.SymlinkTarget)
	return nil
}
