package files

import (
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"
)

// File describes a file.
type File struct {
	Path          string
	Type          fs.FileMode // type bits alone
	Size          int64
	Mode          uint32 // permission bits, set-id and sticky ones included, as in chmod(2)
	UID, GID      int
	Modified      time.Time
	SymlinkTarget string
}

// Name is the last element of the path.
func (f *File) Name() string { return path.Base(f.Path) }

// describe fills in what is known of an open or found file. Reading a link's target runs with the caller's permissions.
func describe(p string, info fs.FileInfo) File {
	f := File{Path: p, Type: info.Mode().Type(), Size: info.Size(), Modified: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.Mode, f.UID, f.GID = st.Mode&0o7777, int(st.Uid), int(st.Gid)
	}
	if f.Type == fs.ModeSymlink {
		f.SymlinkTarget, _ = os.Readlink(p) // it may be gone by now
	}
	return f
}

// Stat describes a file, or the link itself.
func (a *Actor) Stat(p string) (f File, err error) {
	if p, err = a.Resolve("path", p); err != nil {
		return f, err
	}
	err = a.do(func() error {
		info, err := os.Lstat(p)
		if err == nil {
			f = describe(p, info)
		}
		return err
	})
	return f, err
}
