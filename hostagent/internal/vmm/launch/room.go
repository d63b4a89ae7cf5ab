package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind shows a path of the host to the process. A device is not shown but made anew: whoever may use it outside, the process may.
type Bind struct {
	Path string
	// At is where the process sees it. Empty: at the same path.
	At string
	// Writable: the process may write there, as far as its user may. Otherwise nobody can.
	Writable bool
	// Optional: where the host does not have it, the process does not either.
	Optional bool
}

// System is what a dynamically linked program of the distribution needs.
func System() []Bind {
	var list []Bind
	for _, p := range []string{"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"} {
		list = append(list, Bind{Path: p, Optional: true})
	}
	return list
}

// part is one bind on its way into the room.
type part struct {
	Bind
	link   string // a symbolic link to this instead
	isDir  bool
	device uint32 // type of the device at Path, in the bits of st_mode; 0 if it is none
	number int    // the device's
	tree   int    // a mount that is nowhere yet; -1 for a link and a device
}

// enterRoom gives the thread a mount namespace with nothing in it but the room.
func enterRoom(s *Spec) error {
	// CLONE_NEWNS also parts the thread from the working directory and root that the agent's other threads share.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w", err)
	}
	parts, err := openParts(s.Binds)
	defer closeParts(parts)
	if err != nil {
		return err
	}
	devices, err := numbers(s.Devices)
	if err != nil {
		return err
	}
	flags, options := uintptr(unix.MS_NOSUID|unix.MS_NOEXEC), "size=1m,nr_inodes=1k,mode=755"
	if s.Jailer {
		// What it executes it copies into its cage first.
		flags, options = unix.MS_NOSUID, "size=32m,nr_inodes=1k,mode=755"
	}
	if err := unix.Mount("room", s.RoomAt, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", s.RoomAt, err)
	}
	for _, p := range parts {
		if err := p.attach(s.RoomAt); err != nil {
			return fmt.Errorf("bind %s: %w", p.Path, err)
		}
	}
	for path, number := range devices {
		if err := makeDevice(filepath.Join(s.RoomAt, path), unix.S_IFCHR, number); err != nil {
			return fmt.Errorf("device %s: %w", path, err)
		}
	}
	if s.Jailer {
		return pivot(s.RoomAt)
	}
	if err := unix.Mount("", s.RoomAt, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("make the room read-only: %w", err)
	}
	return pivot(s.RoomAt)
}

// pivot makes dir the root and lets go of the old one.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	// With both the same, the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

// openParts takes hold of the binds, outer directories first.
func openParts(binds []Bind) ([]*part, error) {
	binds = slices.Clone(binds)
	for i := range binds {
		binds[i].Path = filepath.Clean(binds[i].Path)
		if binds[i].At == "" {
			binds[i].At = binds[i].Path
		}
		binds[i].At = filepath.Clean(binds[i].At)
	}
	slices.SortStableFunc(binds, func(a, b Bind) int { return strings.Compare(a.At, b.At) })
	var parts []*part
	for _, b := range binds {
		if shown(parts, b) {
			continue
		}
		p, err := openPart(b)
		if errors.Is(err, fs.ErrNotExist) && b.Optional {
			continue
		}
		if err != nil {
			return parts, fmt.Errorf("bind %s: %w", b.Path, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// shown tells whether b is to be seen already, in a directory that is.
func shown(parts []*part, b Bind) bool {
	for _, p := range parts {
		inside := p.At == b.At || strings.HasPrefix(b.At, p.At+"/")
		if inside && b.Path == p.Path+strings.TrimPrefix(b.At, p.At) && (p.Writable || !b.Writable) {
			return true
		}
	}
	return false
}

func openPart(b Bind) (*part, error) {
	st, err := os.Lstat(b.Path)
	if err != nil {
		return nil, err
	}
	p := &part{Bind: b, isDir: st.IsDir(), tree: -1}
	if st.Mode()&fs.ModeSymlink != 0 {
		p.link, err = os.Readlink(b.Path)
		return p, err
	}
	if st.Mode()&fs.ModeDevice != 0 {
		sys := st.Sys().(*syscall.Stat_t)
		p.device, p.number = sys.Mode&unix.S_IFMT, int(sys.Rdev)
		return p, nil
	}
	p.tree, err = unix.OpenTree(unix.AT_FDCWD, b.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if b.Writable {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(p.tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(p.tree)
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return p, nil
}

func closeParts(parts []*part) {
	for _, p := range parts {
		if p.tree >= 0 {
			unix.Close(p.tree)
		}
	}
}

// attach puts the part in its place in the room.
func (p *part) attach(room string) error {
	at := filepath.Join(room, p.At)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if p.link != "" {
		return os.Symlink(p.link, at)
	}
	if p.device != 0 {
		return makeDevice(at, p.device, p.number)
	}
	if err := p.makePlace(at); err != nil {
		return err
	}
	return unix.MoveMount(p.tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (p *part) makePlace(at string) error {
	if _, err := os.Lstat(at); err == nil {
		return nil // within another part
	}
	if p.isDir {
		return os.Mkdir(at, 0o755)
	}
	// Not opened: a process forked elsewhere meanwhile would hold it, and keep the room from being made read-only.
	return unix.Mknod(at, unix.S_IFREG|0o644, 0)
}

// numbers finds the device numbers of paths.
func numbers(paths []string) (map[string]int, error) {
	list := map[string]int{}
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return nil, fmt.Errorf("device %s: %w", p, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return nil, fmt.Errorf("device %s: not a character device", p)
		}
		list[filepath.Clean(p)] = int(st.Rdev)
	}
	return list, nil
}

func makeDevice(at string, kind uint32, number int) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(at, kind|0o666, number); err != nil {
		return err
	}
	return os.Chmod(at, 0o666) // whatever the umask
}
