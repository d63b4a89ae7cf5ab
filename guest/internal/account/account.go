// Package account finds users in the guest's own /etc/passwd and /etc/group, without libc: guestd is static.
//
// The files are read anew at each look-up: what runs in the guest may change them at any time, and reading them costs
// less than noticing the change.
package account

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ErrUnknown: there is no such user in the guest.
var ErrUnknown = errors.New("no such user in the sandbox")

// User is one account.
type User struct {
	Name     string
	UID, GID int
	// Groups are the supplementary groups.
	Groups []int
	Home   string
	Shell  string
}

// Database is where the accounts are. The zero value is the guest's own /etc.
type Database struct {
	// Passwd and Group are the files' paths; empty means /etc/passwd and /etc/group.
	Passwd, Group string
}

func (d Database) passwd() string { return path(d.Passwd, "/etc/passwd") }
func (d Database) group() string  { return path(d.Group, "/etc/group") }

func path(p, otherwise string) string {
	if p == "" {
		return otherwise
	}
	return p
}

// Lookup finds a user by name or number. The empty name means "user" where there is one, else root. Root and a number that
// no account has are users too, so that an image without /etc/passwd works.
func (d Database) Lookup(name string) (*User, error) {
	wanted := name
	if name == "" {
		wanted = "user"
	}
	u, err := d.find(wanted)
	if err != nil {
		return nil, err
	}
	if u == nil && name == "" {
		wanted = "root"
		if u, err = d.find(wanted); err != nil {
			return nil, err
		}
	}
	if u != nil {
		return u, nil
	}
	if wanted == "root" || wanted == "0" {
		return &User{Name: "root", Home: "/root", Shell: "/bin/sh"}, nil
	}
	if id, err := strconv.Atoi(wanted); err == nil && id > 0 && id < 1<<31 {
		return &User{Name: wanted, UID: id, GID: id, Home: "/", Shell: "/bin/sh"}, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
}

// find returns nil where no account has this name or number.
func (d Database) find(name string) (*User, error) {
	var u *User
	err := eachLine(d.passwd(), 7, func(f []string) bool {
		if f[0] != name && f[2] != name {
			return true
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			return true
		}
		u = &User{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}
		return false
	})
	if err != nil || u == nil {
		return nil, err
	}
	err = eachLine(d.group(), 4, func(f []string) bool {
		for member := range strings.SplitSeq(f[3], ",") {
			if gid, err := strconv.Atoi(f[2]); member == u.Name && err == nil {
				u.Groups = append(u.Groups, gid)
			}
		}
		return true
	})
	return u, err
}

// Names reads the names of all uids and gids.
func (d Database) Names() (users, groups map[int]string) {
	return names(d.passwd()), names(d.group())
}

func names(path string) map[int]string {
	all := map[int]string{}
	// A file that cannot be read has no names: numbers are shown instead.
	_ = eachLine(path, 3, func(f []string) bool {
		if id, err := strconv.Atoi(f[2]); err == nil && all[id] == "" {
			all[id] = f[0]
		}
		return true
	})
	return all
}

// eachLine calls do with the colon-separated fields of each line that has at least so many, until it returns false. A missing file has no lines.
func eachLine(path string, fields int, do func(fields []string) bool) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) >= fields && !do(f) {
			return nil
		}
	}
	return nil
}
