package mesh

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Toolchain is what a mesh is started from.
type Toolchain struct {
	// Root is the checkout.
	Root string
	// Bin holds Covey's binaries.
	Bin string
	// Consul is the Consul binary.
	Consul string
	// PostgresBin holds initdb and postgres.
	PostgresBin string
	// Artifacts holds kernel, initramfs and images.
	Artifacts string
}

// packages are the Debian packages that a host needs, each with a file that shows it is there.
var packages = []struct{ name, file string }{
	{"qemu-system-x86", "/usr/bin/qemu-system-x86_64"},
	{"mmdebstrap", "/usr/bin/mmdebstrap"},
	{"postgresql-15", "/usr/lib/postgresql/15/bin/initdb"},
	{"e2fsprogs", "/sbin/mke2fs"},
	{"gcc", "/usr/bin/gcc"},
	{"libc6-dev", "/usr/include/stdio.h"},
	{"xz-utils", "/usr/bin/xz"},
	{"zstd", "/usr/bin/zstd"},
	{"ca-certificates", "/etc/ssl/certs/ca-certificates.crt"},
}

// testPackages are needed by the tests alone.
var testPackages = []struct{ name, file string }{
	{"qemu-utils", "/usr/bin/qemu-io"},
	{"python3-venv", "/usr/lib/python3.11/ensurepip/__init__.py"}, // For the fuzzer of the API.
}

// commands are the binaries of a mesh, by the package that each is built from.
var commands = []string{
	"./services/cmd/sandboxd", "./scheduler/cmd/schedulerd", "./snapshotsvc/cmd/snapshotd", "./snapshotsvc/cmd/snapinspect",
	"./hostagent/cmd/hostagentd", "./gateway/cmd/gatewayd", "./gateway/cmd/covey", "./guest/cmd/guest-build",
	"./deploy/cmd/covey-mesh", "./deploy/cmd/covey-objects",
}

// CacheDir is where what is made once per machine is kept: $COVEY_CACHE, else /var/cache/covey.
func CacheDir() string {
	if d := os.Getenv("COVEY_CACHE"); d != "" {
		return d
	}
	return "/var/cache/covey"
}

// FindRoot finds the checkout that dir lies in, by its go.work.
func FindRoot(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.work")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in a checkout of Covey: no go.work above it", dir)
		}
	}
}

// Prepare makes the toolchain of the checkout at root, using what is cached. It needs root's rights, Go, and Debian's
// package manager. forTests adds what only tests use.
func Prepare(ctx context.Context, root string, p *Progress, forTests bool) (*Toolchain, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the host agent needs root (namespaces, TAP devices, cgroups): run this as root, for example with sudo")
	}
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("this machine is %s; Covey runs on amd64", runtime.GOARCH)
	}
	t := &Toolchain{
		Root: root, Bin: filepath.Join(root, "bin"), PostgresBin: "/usr/lib/postgresql/15/bin",
		Artifacts: filepath.Join(root, ".covey", "artifacts"),
	}
	steps := []struct {
		name string
		do   func(context.Context, func(string)) (string, error)
	}{
		{"Debian packages", func(ctx context.Context, tell func(string)) (string, error) {
			want := packages
			if forTests {
				want = append(want[:len(want):len(want)], testPackages...)
			}
			return installPackages(ctx, tell, want)
		}},
		{"Covey's binaries", t.build},
		{"Consul", t.buildConsul},
		{"kernel and images", t.buildArtifacts},
	}
	for _, s := range steps {
		if err := p.Run(s.name, func(tell func(string)) (string, error) { return s.do(ctx, tell) }); err != nil {
			return nil, err
		}
	}
	return t, t.prune(p)
}

func installPackages(ctx context.Context, tell func(string), want []struct{ name, file string }) (string, error) {
	var missing []string
	for _, p := range want {
		if _, err := os.Stat(p.file); err != nil {
			missing = append(missing, p.name)
		}
	}
	if len(missing) == 0 {
		return fmt.Sprintf("%d present", len(want)), nil
	}
	env := append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if err := run(ctx, tell, "", env, "apt-get", "update", "-q"); err != nil {
		return "", hint(err, "is this Debian 12, and are its package mirrors reachable?")
	}
	args := append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...)
	if err := run(ctx, tell, "", env, "apt-get", args...); err != nil {
		return "", hint(err, "try by hand: apt-get "+strings.Join(args, " "))
	}
	return "installed " + strings.Join(missing, " "), nil
}

func (t *Toolchain) build(ctx context.Context, tell func(string)) (string, error) {
	if err := os.MkdirAll(t.Bin, 0o755); err != nil {
		return "", err
	}
	args := append([]string{"build", "-trimpath", "-o", t.Bin + "/"}, commands...)
	env := append(os.Environ(), "CGO_ENABLED=0")
	if err := run(ctx, tell, t.Root, env, "go", args...); err != nil {
		return "", hint(err, "is Go 1.26 or later on the PATH (go version)?")
	}
	return fmt.Sprintf("%d in bin/", len(commands)), nil
}

// buildConsul builds Consul from its Go module, once per content of its go.sum and Go version.
func (t *Toolchain) buildConsul(ctx context.Context, tell func(string)) (string, error) {
	dir := filepath.Join(t.Root, "deploy", "consul")
	sum, err := hashFiles(filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum"))
	if err != nil {
		return "", err
	}
	into := filepath.Join(CacheDir(), "consul-"+sum)
	t.Consul = filepath.Join(into, "consul")
	if _, err := os.Stat(t.Consul); err == nil {
		return "cached", nil
	}
	if err := os.MkdirAll(into, 0o755); err != nil {
		return "", err
	}
	tell("building from its Go module; about 4 minutes the first time")
	tmp := t.Consul + fmt.Sprintf(".tmp%d", os.Getpid())
	env := append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	if err := run(ctx, tell, dir, env, "go", "build", "-trimpath", "-o", tmp, "github.com/hashicorp/consul"); err != nil {
		return "", hint(err, "is the Go module proxy reachable (go env GOPROXY)?")
	}
	return "built", os.Rename(tmp, t.Consul)
}

func (t *Toolchain) buildArtifacts(ctx context.Context, tell func(string)) (string, error) {
	cache := filepath.Join(CacheDir(), "guest")
	err := run(ctx, tell, t.Root, os.Environ(), filepath.Join(t.Bin, "guest-build"), "-cache", cache, "-out", t.Artifacts)
	if err != nil {
		return "", hint(err, "remove "+cache+" if it was damaged, and try again")
	}
	return "in .covey/artifacts", nil
}

// run runs a command, tells its output line by line, and puts the end of it into the error.
func run(ctx context.Context, tell func(string), dir string, env []string, name string, args ...string) error {
	cmd, out := command(ctx, tell, name, args...)
	cmd.Dir, cmd.Env = dir, env
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), firstWord(args), err, out.keep.String())
	}
	return nil
}

// command is a command whose output is told and whose last lines are kept.
func command(ctx context.Context, tell func(string), name string, args ...string) (*exec.Cmd, *lineTeller) {
	out := &lineTeller{tell: tell}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func firstWord(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func hint(err error, next string) error { return fmt.Errorf("%w\nwhat to do: %s", err, next) }

// hashFiles is a short hash of the files' content and the Go version.
func hashFiles(paths ...string) (string, error) {
	h := sha256.New()
	io.WriteString(h, runtime.Version())
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}
