package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// recipe says how an image is made; its fields decide its content.
type recipe struct {
	diskMB   int
	packages []string
	fill     func(ctx context.Context, r recipe, dir string) error
	// steps are the text of what fill does besides the packages.
	steps string
}

var recipes = map[string]recipe{
	"base": {
		diskMB: 8192, steps: debianSetup, fill: fillDebian,
		packages: []string{"bash", "coreutils", "python3", "git", "curl", "ca-certificates", "sudo", "procps", "iproute2",
			"less", "findutils", "grep", "sed", "gawk", "tar", "gzip", "xz-utils", "unzip", "openssl", "e2fsprogs"},
	},
	"tiny": {diskMB: 512, steps: "1" + passwd + group, fill: fillBusybox, packages: []string{"busybox-static"}},
}

// image makes the image's ext4 file, once per recipe.
func (b *Builder) image(ctx context.Context, name string) (Image, error) {
	r, ok := recipes[name]
	if !ok {
		return Image{}, fmt.Errorf("there is no recipe for it; there are base and tiny")
	}
	packages := append([]string(nil), r.packages...)
	sort.Strings(packages)
	hash := recipeHash("v3", name, r.steps, fmt.Sprint(r.diskMB), strings.Join(packages, " "))
	path := filepath.Join(b.Cache, "image-"+name+"-"+hash+".ext4")
	err := b.once(path, "image "+name, func(tmp string) error {
		dir, err := os.MkdirTemp("", "covey-image-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		if err := r.fill(ctx, r, dir); err != nil {
			return err
		}
		return makeFilesystem(ctx, dir, tmp, name, r.diskMB)
	})
	if err != nil {
		return Image{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Image{}, err
	}
	file := File{Path: "images/" + name + ".ext4", SHA256: hash, SizeBytes: st.Size()}
	return Image{File: file, DiskMB: r.diskMB}, b.link(path, file.Path)
}

// makeFilesystem packs a directory into a sparse ext4 file without mounting it. Inode tables stay unwritten (guestd
// mounts with noinit_itable), so that a fresh guest dirties few blocks of its disk.
func makeFilesystem(ctx context.Context, dir, path, label string, diskMB int) error {
	_, err := run(ctx, "", "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", "covey-"+label, "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-O", "^metadata_csum_seed,^orphan_file",
		"-J", "size=16", "-d", dir, path, fmt.Sprintf("%dM", diskMB))
	return err
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n"
	group  = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\nuser:x:1000:\n"
)

// fillBusybox lays out a system of one static binary and its links.
func fillBusybox(ctx context.Context, _ recipe, dir string) error {
	deb, err := downloadPackage(ctx, "busybox-static")
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(deb))
	if _, err := run(ctx, "", "dpkg-deb", "-x", deb, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "usr")); err != nil {
		return err
	}
	for _, d := range []string{"dev", "etc", "home/user", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	applets, err := run(ctx, "", filepath.Join(dir, "bin/busybox"), "--list")
	if err != nil {
		return err
	}
	for _, a := range strings.Fields(applets) {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	// Scripts begin with it.
	if err := os.Symlink("../../bin/busybox", filepath.Join(dir, "usr/bin/env")); err != nil {
		return err
	}
	for name, body := range map[string]string{"etc/passwd": passwd, "etc/group": group, "etc/hostname": "covey\n", "etc/hosts": "127.0.0.1\tlocalhost\n", "etc/resolv.conf": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777|os.ModeSticky); err != nil {
		return err
	}
	return os.Chown(filepath.Join(dir, "home/user"), 1000, 1000)
}

// debianSetup runs in the fresh system's directory, $1.
const debianSetup = `chroot "$1" sh -euc '
useradd -m -u 1000 -s /bin/bash user
echo "user ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/user && chmod 440 /etc/sudoers.d/user
rm -f /etc/resolv.conf && : > /etc/resolv.conf
echo covey > /etc/hostname && printf "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" > /etc/hosts
: > /etc/machine-id
ln -sf /usr/bin/python3 /usr/local/bin/python
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/*
'`

// fillDebian makes a small Debian with the user "user", who may become root without a password: inside a sandbox the
// virtual machine is the boundary, not the user.
func fillDebian(ctx context.Context, r recipe, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_, err := run(ctx, "", "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory",
		"--include="+strings.Join(r.packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook="+debianSetup, "bookworm", dir)
	return err
}
