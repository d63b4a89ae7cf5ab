package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coveyhq/covey/guest/internal/account"
)

// Spec describes a command.
type Spec struct {
	// Cmd is a path, absolute or relative to Dir, or a name that is looked up in PATH.
	Cmd  string
	Args []string
	// Dir is the working directory, absolute; empty means the user's home, or / where that is missing.
	Dir string
	// Env is added to the sandbox's environment, which is added to the login environment.
	Env map[string]string
	// User is a name or number; empty means the default user.
	User string
	// Terminal gives it a terminal of this size.
	Terminal *Size
	// Timeout kills it and its process group; 0 means never.
	Timeout time.Duration
	// Detached keeps it running when its client goes; KeepAlive makes it hold the sandbox's inactivity timer meanwhile.
	Detached, KeepAlive bool
	// Tag is a name for people.
	Tag string
}

// Size is a terminal's size in characters.
type Size struct{ Rows, Cols uint16 }

// FieldError: a value of a Spec that is never legal.
type FieldError struct{ Name, Why string }

func (e *FieldError) Error() string { return e.Name + ": " + e.Why }

// Field names the field, in the words of the contract.
func (e *FieldError) Field() string { return e.Name }

// Reason says what is wrong with it.
func (e *FieldError) Reason() string { return e.Why }

// validate finds what no system call could take.
func (s *Spec) validate() error {
	if s.Cmd == "" {
		return &FieldError{"cmd", "must name a program, is empty"}
	}
	if s.Dir != "" && !filepath.IsAbs(s.Dir) {
		return &FieldError{"cwd", fmt.Sprintf("must be an absolute path, got %q", s.Dir)}
	}
	for _, f := range []struct{ name, value string }{{"cmd", s.Cmd}, {"cwd", s.Dir}} {
		if strings.Contains(f.value, "\x00") {
			return &FieldError{f.name, "must not contain NUL"}
		}
	}
	for _, a := range s.Args {
		if strings.Contains(a, "\x00") {
			return &FieldError{"args", "must not contain NUL"}
		}
	}
	for k, v := range s.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return &FieldError{"env", fmt.Sprintf("must have names without = and NUL, and values without NUL, got name %q", k)}
		}
	}
	return nil
}

// StartError: the command cannot be run. Code is what a shell would answer.
type StartError struct {
	Code   int
	Reason string
}

func (e *StartError) Error() string { return e.Reason }

// startError says why execve failed for a file that is there.
func startError(cmd string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &StartError{127, cmd + ": its interpreter is missing"}
	case errors.Is(err, fs.ErrPermission):
		return &StartError{126, cmd + ": permission denied"}
	case errors.Is(err, syscall.ENOEXEC):
		return &StartError{126, cmd + ": not an executable"}
	case errors.Is(err, syscall.E2BIG):
		return &StartError{126, cmd + ": arguments and environment are too long"}
	}
	return &StartError{126, fmt.Sprintf("%s: %v", cmd, err)}
}

// directory is where the command runs.
func (s *Spec) directory(u *account.User) (string, error) {
	if s.Dir != "" {
		switch st, err := os.Stat(s.Dir); {
		case err != nil:
			return "", &StartError{126, fmt.Sprintf("working directory %q: no such directory", s.Dir)}
		case !st.IsDir():
			return "", &StartError{126, fmt.Sprintf("working directory %q: not a directory", s.Dir)}
		}
		return s.Dir, nil
	}
	if st, err := os.Stat(u.Home); err == nil && st.IsDir() {
		return u.Home, nil
	}
	return "/", nil
}

// lookPath finds the program as a shell would, in the PATH of the environment that it will have.
func lookPath(cmd, dir, searchPath string) (string, error) {
	if strings.Contains(cmd, "/") {
		path := cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(cmd, path)
	}
	var denied error
	for d := range strings.SplitSeq(searchPath, ":") {
		if !filepath.IsAbs(d) {
			continue
		}
		path := d + "/" + cmd
		err := executable(cmd, path)
		if err == nil {
			return path, nil
		}
		var s *StartError
		if denied == nil && errors.As(err, &s) && s.Code == 126 {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", &StartError{127, cmd + ": command not found"}
}

func executable(cmd, path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return &StartError{127, cmd + ": no such file"}
	case st.IsDir():
		return &StartError{126, cmd + ": is a directory"}
	case st.Mode()&0o111 == 0:
		return &StartError{126, cmd + ": permission denied"}
	}
	return nil
}

// Path is the PATH that a command has unless its environment says otherwise; the last directory is where init puts what
// Covey offers inside the guest.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/covey/bin"

// environment merges the login environment, the sandbox's and the command's own. It returns PATH apart too.
func environment(u *account.User, s *Spec, sandbox map[string]string) (list []string, path string) {
	env := map[string]string{"HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name, "SHELL": u.Shell, "LANG": "C.UTF-8", "PATH": Path}
	if s.Terminal != nil {
		env["TERM"] = "xterm-256color"
	}
	for k, v := range sandbox {
		env[k] = v
	}
	for k, v := range s.Env {
		env[k] = v
	}
	list = make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	return list, env["PATH"]
}
