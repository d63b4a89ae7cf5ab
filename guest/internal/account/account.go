// Package account finds users in the guest's own /etc/passwd and /etc/group, without libc: guestd is static.
package account

import (
	"bufio"
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
	Groups   []int
	Home     string
	Shell    string
}

// Lookup finds a user by name or number. The empty name means "user" where there is one, else root.
func Lookup(name string) (*User, error) {
	if name == "" {
		if u, err := find("user"); err == nil {
			return u, nil
		}
		name = "root"
	}
	u, err := find(name)
	if err == nil {
		return u, nil
	}
	if name == "root" || name == "0" {
		return &User{Name: "root", Home: "/root", Shell: "/bin/sh"}, nil
	}
	if id, numErr := strconv.Atoi(name); numErr == nil && id > 0 && id < 1<<31 {
		return &User{Name: name, UID: id, GID: id, Home: "/", Shell: "/bin/sh"}, nil
	}
	return nil, err
}

func find(name string) (*User, error) {
	var found *User
	err := eachLine("/etc/passwd", func(f []string) bool {
		if len(f) < 7 || (f[0] != name && f[2] != name) {
			return true
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			return true
		}
		found = &User{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}
		return false
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	err = eachLine("/etc/group", func(f []string) bool {
		if len(f) >= 4 && contains(strings.Split(f[3], ","), found.Name) {
			if gid, err := strconv.Atoi(f[2]); err == nil {
				found.Groups = append(found.Groups, gid)
			}
		}
		return true
	})
	return found, err
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// UserName is the name of a uid, or the number where it has none.
func UserName(uid int) string { return nameOf("/etc/passwd", uid) }

// GroupName is the name of a gid, or the number where it has none.
func GroupName(gid int) string { return nameOf("/etc/group", gid) }

func nameOf(path string, id int) string {
	name := strconv.Itoa(id)
	eachLine(path, func(f []string) bool {
		if len(f) >= 3 && f[2] == strconv.Itoa(id) {
			name = f[0]
			return false
		}
		return true
	})
	return name
}

// eachLine calls do with the colon-separated fields of each line until it returns false. A missing file has no lines.
func eachLine(path string, do func(fields []string) bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if !do(strings.Split(s.Text(), ":")) {
			return nil
		}
	}
	return s.Err()
}
