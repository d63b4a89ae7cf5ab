package preload

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

//go:embed object/covey-preload.c
var source []byte

// flags are part of what the object's name is made of: other flags, another object.
var flags = []string{"-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-z,relro,-z,now"}

// Build compiles the object into dir, unless this version of it is there, and returns its path. It needs gcc. Concurrent calls,
// of other processes too, do no harm. The object and dir can be read by every user, because VMMs run as their own.
func Build(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "covey-preload-"+version()+".so")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, ".covey-preload-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	object := filepath.Join(tmp, "object.so")
	if err := compile(ctx, object); err != nil {
		return "", err
	}
	// The rename makes the object appear whole or not at all.
	if err := os.Chmod(object, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(object, path); err != nil {
		return "", err
	}
	return path, prune(dir)
}

// keepObjects is how many versions are kept. A VMM that was started with one has it mapped, and does not need its file any more.
const keepObjects = 3

// prune removes all but the latest versions.
func prune(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "covey-preload-*.so"))
	if err != nil {
		return err
	}
	made := map[string]time.Time{}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil { // Else another process has just removed it.
			made[path] = info.ModTime()
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return made[b].Compare(made[a]) })
	for _, path := range paths[min(keepObjects, len(paths)):] {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// version names the content: the source and how it is compiled.
func version() string {
	h := sha256.New()
	h.Write(source)
	fmt.Fprintf(h, "%q", flags)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func compile(ctx context.Context, object string) error {
	cmd := exec.CommandContext(ctx, "gcc", append(flags, "-x", "c", "-o", object, "-")...)
	cmd.Stdin = bytes.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile covey-preload.so with gcc: %w\n%s", err, out)
	}
	return nil
}

// Env is the environment that makes a VMM use the object at path. memFD and uffdFD are the descriptors' numbers in the VMM;
// its memory file is MemPath(memFD).
func Env(path string, memFD, uffdFD int, socket string) []string {
	return []string{
		"LD_PRELOAD=" + path,
		"COVEY_MEM_FD=" + strconv.Itoa(memFD),
		"COVEY_UFFD_FD=" + strconv.Itoa(uffdFD),
		"COVEY_PAGER_SOCKET=" + socket,
	}
}

// MemPath is the path of the memory file as the VMM is to be told it.
func MemPath(memFD int) string { return "/proc/self/fd/" + strconv.Itoa(memFD) }
