package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Artifacts describes a finished build; it is artifacts.json in the output directory.
type Artifacts struct {
	// KernelRelease is the guest kernel's version, like "6.1.0-56-cloud-amd64".
	KernelRelease string `json:"kernel_release"`
	// KernelID is a hash over kernel and initramfs, hexadecimal; snapshots record it.
	KernelID string `json:"kernel_id"`
	// Cmdline is the kernel command line that the initramfs expects.
	Cmdline string `json:"cmdline"`
	// BzImage, Vmlinux and Initramfs are the boot files.
	BzImage   File `json:"bzimage"`
	Vmlinux   File `json:"vmlinux"`
	Initramfs File `json:"initramfs"`
	// Images by name.
	Images map[string]Image `json:"images"`
}

// File is one artifact.
type File struct {
	// Path is relative to the output directory.
	Path string `json:"path"`
	// SHA256 of the content, hexadecimal; for images of the recipe, since reading gigabytes at every start helps no one.
	SHA256 string `json:"sha256"`
	// SizeBytes is the file's length.
	SizeBytes int64 `json:"size_bytes"`
}

// Image is a root filesystem.
type Image struct {
	File
	// DiskMB is its logical size, MiB; a sandbox's disk is at least as large.
	DiskMB int `json:"disk_mb"`
}

// Cmdline is the kernel command line for every guest; it names nothing of a sandbox, so that snapshots are generic.
//
//   - panic=1 and reboot=t end the VM after a panic.
//   - random.trust_cpu seeds the generator without waiting; no_timer_check and tsc=reliable keep clock calibration from
//     failing under emulation; nowatchdog, since a guest that was paused is not stuck.
//   - mitigations, lsm, init_on_alloc, hardened_usercopy, randomize_kstack_offset and nokaslr switch off what protects a
//     kernel from its programs: here the virtual machine is the boundary, a sandbox's user may become root, and every piece of code
//     that does not run is time under emulation. Landlock stays, for programs that confine themselves.
//   - no5lvl: a fifth level of page tables is for machines with more memory than any guest has.
//   - audit, psi and transparent_hugepage: accounting that nobody reads, and pages that would make small changes large.
//
// A driver adds what its machine needs, like the frequency of the time stamp counter under emulation: a guest on a busy host may fail to
// measure it, and then never boots.
const Cmdline = "console=ttyS0 quiet loglevel=4 panic=1 reboot=t random.trust_cpu=on no_timer_check tsc=reliable nowatchdog " +
	"net.ifnames=0 mitigations=off lsm=landlock init_on_alloc=0 hardened_usercopy=0 randomize_kstack_offset=0 nokaslr no5lvl " +
	"audit=0 psi=0 transparent_hugepage=never"

// Builder makes artifacts.
type Builder struct {
	// Cache is where parts are kept between builds; Out gets links to them and artifacts.json.
	Cache, Out string
	// Images to make; empty means all.
	Images []string
	// Progress gets a line for each step.
	Progress io.Writer
}

// Build makes everything that is missing and writes artifacts.json last.
func (b *Builder) Build(ctx context.Context) (*Artifacts, error) {
	if len(b.Images) == 0 {
		b.Images = []string{"tiny", "base"}
	}
	for _, d := range []string{b.Cache, filepath.Join(b.Out, "images")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	a := &Artifacts{Cmdline: Cmdline, Images: map[string]Image{}}
	k, err := b.kernel(ctx)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	a.KernelRelease = k.release
	initramfs, err := b.initramfs(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	for _, f := range []struct {
		into *File
		from string
		name string
	}{{&a.BzImage, k.bzImage, "bzImage"}, {&a.Vmlinux, k.vmlinux, "vmlinux"}, {&a.Initramfs, initramfs, "initramfs.cpio"}} {
		if *f.into, err = b.publish(f.from, f.name); err != nil {
			return nil, err
		}
	}
	id := sha256.Sum256([]byte(a.BzImage.SHA256 + a.Initramfs.SHA256))
	a.KernelID = hex.EncodeToString(id[:])
	for _, name := range b.Images {
		if a.Images[name], err = b.image(ctx, name); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	raw, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return nil, err
	}
	return a, replaceFile(filepath.Join(b.Out, "artifacts.json"), append(raw, '\n'))
}

// publish links a cached file into the output directory and describes it.
func (b *Builder) publish(from, name string) (File, error) {
	sum, size, err := hashFile(from)
	if err != nil {
		return File{}, err
	}
	return File{Path: name, SHA256: sum, SizeBytes: size}, b.link(from, name)
}

func (b *Builder) link(from, name string) error {
	to := filepath.Join(b.Out, name)
	tmp := to + ".tmp"
	os.Remove(tmp)
	if err := os.Symlink(from, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// once makes path by do unless it is there; do writes to a temporary path, which is renamed when it is whole.
func (b *Builder) once(path, what string, do func(tmp string) error) error {
	if _, err := os.Stat(path); err == nil {
		fmt.Fprintf(b.Progress, "%s: cached\n", what)
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Fprintf(b.Progress, "%s: building\n", what)
	began := time.Now()
	tmp := fmt.Sprintf("%s.tmp%d", path, os.Getpid())
	defer os.RemoveAll(tmp)
	if err := do(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		if _, there := os.Stat(path); there != nil {
			return err
		} // another build, at the same time, was quicker
	}
	fmt.Fprintf(b.Progress, "%s: built in %.1fs\n", what, time.Since(began).Seconds())
	return nil
}

// run runs a command in dir; its output is in the error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		return "", fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-2000):])
	}
	return string(out), nil
}

func hashFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".tmp", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// recipeHash names a cached part by everything that decides its content.
func recipeHash(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h[:8])
}
