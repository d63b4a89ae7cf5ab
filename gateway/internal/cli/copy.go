package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

// place is a file in a sandbox.
type place struct{ sandbox, path string }

// parsePlace reads SANDBOX:PATH. Without a path it is the home.
func parsePlace(s string) (place, bool) {
	id, p, ok := strings.Cut(s, ":")
	if !ok || !strings.HasPrefix(id, "sb_") || strings.ContainsAny(id, "/.") {
		return place{}, false
	}
	return place{id, p}, true
}

// copier copies for one call of cp.
type copier struct {
	*app
	ctx  context.Context
	user string
}

func (a *app) copyCmd() *cobra.Command {
	c := &copier{app: a}
	cmd := &cobra.Command{
		Use: "cp SOURCE DESTINATION", Short: "Copy files and directories into or out of a sandbox",
		Long: "One of SOURCE and DESTINATION is SANDBOX:PATH; a path that is not absolute begins at the user's home. The other is a file or directory here,\n" +
			"or - for standard input or output. As with cp, a destination that is a directory takes the source under its own name.",
		Example: "  covey cp data.csv sb_...:\n  covey cp sb_...:out/ results\n  tar c . | covey cp - sb_...:/tmp/all.tar\n  covey cp sb_...:/etc/os-release -",
		Args:    args("SOURCE", "DESTINATION"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c.ctx = cmd.Context()
			src, from := parsePlace(argv[0])
			dst, to := parsePlace(argv[1])
			switch {
			case from && to:
				return usageError{errors.New("one of SOURCE and DESTINATION must be here; copy from one sandbox to another with `covey cp A:x - | covey cp - B:x`")}
			case to:
				return c.in(argv[0], dst)
			case from:
				return c.out(src, argv[1])
			}
			return usageError{errors.New("one of SOURCE and DESTINATION must be SANDBOX:PATH, like sb_01ARZ3NDEKTSV4RRFFQ69G5FAV:data.csv")}
		},
	}
	cmd.Flags().StringVarP(&c.user, "user", "u", "", "user to act as in the sandbox (default user, or root where there is none)")
	return cmd
}

// stat describes a file in the sandbox; nil if there is none.
func (c *copier) stat(p place) (*guestv1.File, error) {
	if p.path == "" {
		p.path = "."
	}
	res, err := c.c.files.StatFile(c.ctx, &guestv1.StatFileRequest{SandboxId: p.sandbox, Path: p.path, User: c.user})
	if status.Code(err) == codes.NotFound && !sandboxMissing(err) {
		return nil, nil
	}
	return res.GetFile(), err
}

func isDir(f *guestv1.File) bool { return f.GetType() == guestv1.FileType_FILE_TYPE_DIRECTORY }

// in copies into the sandbox.
func (c *copier) in(src string, dst place) error {
	if src == "-" {
		if dst.path == "" || strings.HasSuffix(dst.path, "/") {
			return usageError{errors.New("DESTINATION must name a file, as standard input has no name")}
		}
		return c.write(c.app.in, dst, 0, 0)
	}
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	// Like cp: into a directory that is there, or is written as one.
	if dst.path == "" || strings.HasSuffix(dst.path, "/") {
		dst.path += filepath.Base(absolute(src))
	} else if f, err := c.stat(dst); err != nil {
		return err
	} else if isDir(f) {
		dst.path = path.Join(dst.path, filepath.Base(absolute(src)))
	}
	if !st.IsDir() {
		return c.upload(src, dst)
	}
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		to := place{dst.sandbox, path.Join(dst.path, filepath.ToSlash(rel))}
		switch {
		case d.IsDir():
			_, err := c.c.files.MakeDirectory(c.ctx, &guestv1.MakeDirectoryRequest{SandboxId: to.sandbox, Path: to.path, User: c.user})
			return err
		case d.Type().IsRegular():
			return c.upload(p, to)
		}
		fmt.Fprintf(c.err, "covey: %s is neither file nor directory and was left out\n", p)
		return nil
	})
}

func absolute(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

func (c *copier) upload(src string, dst place) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return c.write(f, dst, uint32(st.Mode().Perm()), st.Size())
}

// write writes what r gives to a file in the sandbox.
func (c *copier) write(r io.Reader, dst place, mode uint32, size int64) error {
	ctx, cancel := context.WithCancel(c.ctx) // To the guest, a stream that ends in order is the whole file.
	defer cancel()
	st, err := c.c.files.WriteFile(ctx)
	if err != nil {
		return err
	}
	m := &guestv1.WriteFileRequest{SandboxId: dst.sandbox, Header: &guestv1.WriteFileHeader{Path: dst.path, User: c.user, Mode: mode, MakeParents: true}}
	r = c.meter(r, path.Base(dst.path), size)
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if m.Data = buf[:n]; n > 0 || m.Header != nil {
			if sent := st.Send(m); errors.Is(sent, io.EOF) {
				break // CloseAndRecv has the reason.
			} else if sent != nil {
				return sent
			}
		}
		if err != nil {
			break
		}
		m = &guestv1.WriteFileRequest{}
	}
	_, err = st.CloseAndRecv()
	return err
}

// out copies out of the sandbox.
func (c *copier) out(src place, dst string) error {
	f, err := c.stat(src)
	if err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("%s: no such file or directory in %s", src.path, src.sandbox)
	}
	if dst == "-" {
		if isDir(f) {
			return fmt.Errorf("%s is a directory; `covey exec %s -- tar c %s` gives an archive", src.path, src.sandbox, src.path)
		}
		return c.read(src, f, c.app.out)
	}
	if st, err := os.Stat(dst); err == nil && st.IsDir() {
		// The name comes from the guest, whose answers are not trusted.
		if dst = filepath.Join(dst, f.GetName()); !filepath.IsLocal(f.GetName()) {
			return fmt.Errorf("%s has the name %q, which would lie outside of the destination", src.path, f.GetName())
		}
	}
	if isDir(f) {
		return c.outDirectory(src, f, dst)
	}
	dir, err := os.OpenRoot(filepath.Dir(dst))
	if err != nil {
		return err
	}
	defer dir.Close()
	return c.download(src, f, dir, filepath.Base(dst))
}

// outDirectory copies a directory. The root keeps everything below dst, whatever names and links the guest gives.
func (c *copier) outDirectory(src place, f *guestv1.File, dst string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dst)
	if err != nil {
		return err
	}
	defer root.Close()
	return c.outTree(place{src.sandbox, f.GetPath()}, root, ".")
}

// outTree copies what is in a directory of the sandbox, level by level, as a listing is bounded in depth.
func (c *copier) outTree(src place, root *os.Root, name string) error {
	q := &guestv1.ListFilesRequest{SandboxId: src.sandbox, Path: src.path, User: c.user, Depth: 1, PageSize: 1000}
	for p, err := range page.Each(&q.PageToken, func() (*guestv1.ListFilesResponse, error) { return c.c.files.ListFiles(c.ctx, q) }) {
		if err != nil {
			return err
		}
		for _, f := range p.GetFiles() {
			if err := c.outEntry(place{src.sandbox, f.GetPath()}, f, root, filepath.Join(name, f.GetName())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *copier) outEntry(src place, f *guestv1.File, root *os.Root, name string) error {
	switch f.GetType() {
	case guestv1.FileType_FILE_TYPE_DIRECTORY:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return c.outTree(src, root, name)
	case guestv1.FileType_FILE_TYPE_REGULAR:
		return c.download(src, f, root, name)
	}
	fmt.Fprintf(c.err, "covey: %s is neither file nor directory and was left out\n", f.GetPath())
	return nil
}

// download writes a file of the sandbox here. It appears whole or not at all.
func (c *copier) download(src place, f *guestv1.File, root *os.Root, name string) (err error) {
	part := name + ".covey-part"
	w, err := root.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(f.GetMode())&0o777|0o600)
	if err != nil {
		return err
	}
	err = c.read(src, f, w)
	if err = errors.Join(err, w.Close()); err == nil {
		err = root.Rename(part, name)
	}
	if err != nil {
		err = errors.Join(err, root.Remove(part))
	}
	return err
}

func (c *copier) read(src place, f *guestv1.File, w io.Writer) error {
	st, err := c.c.files.ReadFile(c.ctx, &guestv1.ReadFileRequest{SandboxId: src.sandbox, Path: src.path, User: c.user})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, c.meter(&frames{st: st}, f.GetName(), f.GetSizeBytes()))
	return err
}

// frames reads the bytes of a stream of frames.
type frames struct {
	st   guestv1.FileService_ReadFileClient
	rest []byte
}

func (f *frames) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		m, err := f.st.Recv()
		if err != nil {
			return 0, err
		}
		f.rest = m.GetData()
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}
