package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// modules are loaded by guestd in this order, which is their order of dependence.
var modules = []string{
	"kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko", "kernel/drivers/virtio/virtio_mmio.ko",
	"kernel/drivers/block/virtio_blk.ko", "kernel/net/core/failover.ko", "kernel/drivers/net/net_failover.ko",
	"kernel/drivers/net/virtio_net.ko", "kernel/drivers/char/hw_random/virtio-rng.ko", "kernel/fs/overlayfs/overlay.ko",
}

// initramfs builds guestd and packs it with the modules. The archive is cached by guestd's content.
func (b *Builder) initramfs(ctx context.Context, k *kernel) (string, error) {
	guestd := filepath.Join(b.Cache, fmt.Sprintf("guestd.tmp%d", os.Getpid()))
	defer os.Remove(guestd)
	if err := buildGuestd(ctx, guestd); err != nil {
		return "", err
	}
	sum, _, err := hashFile(guestd)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.Cache, "initramfs-"+recipeHash("v1", k.release, sum, strings.Join(modules, " "))+".cpio")
	return path, b.once(path, "initramfs", func(tmp string) error { return packInitramfs(tmp, guestd, k) })
}

// buildGuestd builds the static binary; the result depends on the source alone.
func buildGuestd(ctx context.Context, out string) error {
	for k, v := range map[string]string{"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": "amd64"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	_, err := run(ctx, "", "go", "build", "-tags=grpcnotrace", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "github.com/coveyhq/covey/guest/cmd/guestd")
	return err
}

func packInitramfs(path, guestd string, k *kernel) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: f}
	for _, dir := range []string{"dev", "proc", "sys", "root", "run", "modules"} {
		c.add(dir, 0o040755, nil)
	}
	for i, m := range modules {
		body, err := os.ReadFile(filepath.Join(k.dir, "modules", m))
		if err != nil {
			return err
		}
		c.add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m)), 0o100644, body)
	}
	body, err := os.ReadFile(guestd)
	if err != nil {
		return err
	}
	c.add("init", 0o100755, body)
	if err := c.close(); err != nil {
		return err
	}
	return f.Close()
}

// cpio writes the "newc" archive format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func (c *cpio) add(name string, mode uint32, body []byte) {
	c.inode++
	links := 1
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, links, 0, len(body), 0, 0, 0, 0, len(name)+1, 0)
	c.write([]byte(head + name + "\x00"))
	c.pad(len(head) + len(name) + 1)
	c.write(body)
	c.pad(len(body))
}

func (c *cpio) pad(n int) { c.write(make([]byte, (4-n%4)%4)) }

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}

func (c *cpio) close() error {
	c.add("TRAILER!!!", 0, nil)
	return c.err
}
