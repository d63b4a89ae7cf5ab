package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// records say whose the user ids of the machine are. Agents share the directory.
type records struct {
	dir   string
	owner string
	base  int
	count int
	// next is where the search for a free id goes on: an id is not used again at once.
	next int
}

// find tells the ids of the cages of this owner, and which user ids are taken by anybody.
func (r *records) find() (ours map[string]int, taken map[int]bool, err error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	ours, taken = map[string]int{}, map[int]bool{}
	for _, e := range entries {
		uid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		taken[uid] = true
		b, err := os.ReadFile(r.path(uid))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		if owner, id, ok := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n"); ok && owner == r.owner {
			ours[id] = uid
		}
	}
	return ours, taken, nil
}

// take writes a record for an id with a user id that is free.
func (r *records) take(id string) (uid int, err error) {
	_, taken, err := r.find()
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return 0, err
	}
	tmp, err := os.CreateTemp(r.dir, "new-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(r.content(id))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return 0, err
	}
	for range r.count {
		uid = r.base + r.next
		r.next = (r.next + 1) % r.count
		if taken[uid] {
			continue
		}
		// A link is made whole or not at all, and never over another agent's.
		err := os.Link(tmp.Name(), r.path(uid))
		if err == nil {
			return uid, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("all %d user ids from %d on are taken", r.count, r.base)
}

// drop removes the record of an id, if the user id still is its.
func (r *records) drop(id string, uid int) error {
	b, err := os.ReadFile(r.path(uid))
	if err == nil && string(b) == r.content(id) {
		err = os.Remove(r.path(uid))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (r *records) content(id string) string { return r.owner + "\n" + id + "\n" }

func (r *records) path(uid int) string { return filepath.Join(r.dir, strconv.Itoa(uid)) }
