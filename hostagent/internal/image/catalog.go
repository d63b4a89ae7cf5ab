package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// BlockSize is the unit of disks, bytes.
const BlockSize = 4096

// ErrNotFound: the catalog has no image of this name.
var ErrNotFound = errors.New("no such image")

// Catalog is a directory of images. It is read anew at each call, so images can be added while the agent runs.
type Catalog struct{ dir string }

// Image is one image of a catalog.
type Image struct {
	Name string
	// Path of its file.
	Path string
	// DiskBytes is the size of the disk; the file may be shorter, and zeros follow.
	DiskBytes int64
	Stamp     Stamp
}

// Stamp changes when a file is replaced or written to.
type Stamp struct {
	Path      string `json:"path"`
	Device    uint64 `json:"device"`
	Inode     uint64 `json:"inode"`
	SizeBytes int64  `json:"size_bytes"`
	// MTime is the time of the last change, nanoseconds since 1970.
	MTime int64 `json:"mtime"`
}

// artifacts is what this package needs of artifacts.json.
type artifacts struct {
	Images map[string]struct {
		Path   string `json:"path"`
		DiskMB int64  `json:"disk_mb"`
	} `json:"images"`
}

// maxDiskMB bounds an image, MiB.
const maxDiskMB = 1 << 24

// NewCatalog opens a directory that has an artifacts.json.
func NewCatalog(dir string) (*Catalog, error) {
	c := &Catalog{dir}
	_, err := c.read()
	return c, err
}

func (c *Catalog) read() (artifacts, error) {
	var a artifacts
	path := filepath.Join(c.dir, "artifacts.json")
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		return a, fmt.Errorf("images: %s: %w", path, err)
	}
	return a, nil
}

// Names lists the images.
func (c *Catalog) Names() ([]string, error) {
	a, err := c.read()
	return slices.Sorted(maps.Keys(a.Images)), err
}

// Find looks an image up. ErrNotFound.
func (c *Catalog) Find(name string) (Image, error) {
	a, err := c.read()
	if err != nil {
		return Image{}, err
	}
	entry, ok := a.Images[name]
	if !ok {
		return Image{}, fmt.Errorf("image %.100q: %w; there are: %s", name, ErrNotFound, strings.Join(slices.Sorted(maps.Keys(a.Images)), ", "))
	}
	if entry.DiskMB <= 0 || entry.DiskMB > maxDiskMB {
		return Image{}, fmt.Errorf("image %s: disk_mb must be 1 to %d, is %d", name, maxDiskMB, entry.DiskMB)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(c.dir, entry.Path))
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	return Image{Name: name, Path: path, DiskBytes: entry.DiskMB << 20, Stamp: stampOf(path, st)}, nil
}

func stampOf(path string, st os.FileInfo) Stamp {
	s := Stamp{Path: path, SizeBytes: st.Size(), MTime: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.Device, s.Inode = uint64(sys.Dev), sys.Ino
	}
	return s
}
