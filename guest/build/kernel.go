package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pierrec/lz4/v4"
)

// kernel is an unpacked kernel package.
type kernel struct {
	release, dir     string
	bzImage, vmlinux string
}

var kernelPackage = regexp.MustCompile(`linux-image-([0-9][^ ]*-cloud-amd64)`)

// kernel finds the package that linux-image-cloud-amd64 stands for now, and unpacks it. A kernel that was unpacked before
// is used even where the package lists know a newer one: remove it from the cache to move on.
func (b *Builder) kernel(ctx context.Context) (*kernel, error) {
	if had, err := filepath.Glob(filepath.Join(b.Cache, "kernel-*-cloud-amd64")); err == nil && len(had) > 0 {
		fmt.Fprintln(b.Progress, "kernel: cached")
		return openKernel(had[len(had)-1])
	}
	out, err := run(ctx, "", "apt-cache", "depends", "linux-image-cloud-amd64")
	if err != nil || !kernelPackage.MatchString(out) {
		if _, err := run(ctx, "", "apt-get", "update", "-q"); err != nil {
			return nil, err
		}
		if out, err = run(ctx, "", "apt-cache", "depends", "linux-image-cloud-amd64"); err != nil {
			return nil, err
		}
	}
	found := kernelPackage.FindStringSubmatch(out)
	if found == nil {
		return nil, fmt.Errorf("the package lists do not say what linux-image-cloud-amd64 depends on: %q", out)
	}
	dir := filepath.Join(b.Cache, "kernel-"+found[1])
	err = b.once(dir, "kernel "+found[1], func(tmp string) error { return unpackKernel(ctx, found[0], found[1], tmp) })
	if err != nil {
		return nil, err
	}
	return openKernel(dir)
}

func openKernel(dir string) (*kernel, error) {
	k := &kernel{release: strings.TrimPrefix(filepath.Base(dir), "kernel-"), dir: dir,
		bzImage: filepath.Join(dir, "bzImage"), vmlinux: filepath.Join(dir, "vmlinux")}
	for _, p := range []string{k.bzImage, k.vmlinux} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("the cached kernel is not whole, remove %s: %w", dir, err)
		}
	}
	return k, nil
}

func unpackKernel(ctx context.Context, pkg, release, dir string) error {
	deb, err := downloadPackage(ctx, pkg)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(deb))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := run(ctx, "", "dpkg-deb", "-x", deb, filepath.Join(dir, "x")); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "x", "boot", "vmlinuz-"+release))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bzImage"), raw, 0o644); err != nil {
		return err
	}
	elf, err := extractVmlinux(raw)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinux"), elf, 0o644); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "x", "lib", "modules", release), filepath.Join(dir, "modules")); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "x"))
}

// downloadPackage fetches a Debian package into a directory of its own and returns its path.
func downloadPackage(ctx context.Context, pkg string) (string, error) {
	dir, err := os.MkdirTemp("", "covey-deb-")
	if err != nil {
		return "", err
	}
	// apt fetches as its own user, which must be able to write here.
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", err
	}
	if _, err := run(ctx, dir, "apt-get", "download", "-q", pkg); err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		os.RemoveAll(dir)
		return "", fmt.Errorf("apt-get download %s left %d packages", pkg, len(debs))
	}
	return debs[0], nil
}

// extractVmlinux unpacks the ELF kernel from a bzImage. The setup header (Documentation/x86/boot.rst in Linux) gives the
// number of setup sectors at 0x1f1 and the payload's offset and length at 0x248 and 0x24c, relative to the end of setup.
func extractVmlinux(bz []byte) ([]byte, error) {
	if len(bz) < 0x250 || string(bz[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage: no HdrS signature")
	}
	setup := (int(bz[0x1f1]) + 1) * 512
	off := setup + int(binary.LittleEndian.Uint32(bz[0x248:]))
	n := int(binary.LittleEndian.Uint32(bz[0x24c:]))
	if off < setup || n <= 4 || off+n > len(bz) {
		return nil, fmt.Errorf("bzImage: payload of %d bytes at %d lies outside the file of %d", n, off, len(bz))
	}
	payload := bz[off : off+n]
	if !bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}) {
		return nil, fmt.Errorf("bzImage: payload begins with % x, want LZ4 (02 21 4c 18)", payload[:4])
	}
	// The kernel's build appends the unpacked size, four bytes that are no part of the LZ4 stream.
	elf, err := io.ReadAll(lz4.NewReader(bytes.NewReader(payload[:n-4])))
	if err != nil {
		return nil, fmt.Errorf("bzImage: unpack payload: %w", err)
	}
	if want := int(binary.LittleEndian.Uint32(payload[n-4:])); len(elf) != want {
		return nil, fmt.Errorf("bzImage: payload unpacks to %d bytes, want %d", len(elf), want)
	}
	if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		return nil, errors.New("bzImage: the payload is not ELF")
	}
	return elf, nil
}
