package meshtest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// inside is a path in a sandbox's directory, which stands for "/" and for the home.
func (h *host) inside(id, path string) (string, error) {
	dir, err := h.home(id)
	if err == nil && path == "" {
		err = apierr.Field("path", "is required")
	}
	return filepath.Join(dir, filepath.Clean("/"+path)), err
}

func describe(full, path string) (*guestv1.File, error) {
	st, err := os.Lstat(full)
	if err != nil {
		return nil, fileError(err, path)
	}
	f := &guestv1.File{
		Path: filepath.Clean("/" + path), Name: st.Name(), Type: guestv1.FileType_FILE_TYPE_REGULAR, SizeBytes: st.Size(), Mode: uint32(st.Mode().Perm()),
		Owner: "user", Group: "user", ModifiedUnixMs: st.ModTime().UnixMilli(),
	}
	switch {
	case st.IsDir():
		f.Type = guestv1.FileType_FILE_TYPE_DIRECTORY
	case st.Mode()&fs.ModeSymlink != 0:
		f.Type = guestv1.FileType_FILE_TYPE_SYMLINK
		f.SymlinkTarget, _ = os.Readlink(full)
	}
	return f, nil
}

func fileError(err error, path string) error {
	switch {
	case apierr.Info(err) != nil:
		return err
	case errors.Is(err, fs.ErrNotExist):
		return apierr.E(codes.NotFound, "FILE_NOT_FOUND", path+": no such file or directory", "path", path)
	case errors.Is(err, fs.ErrExist):
		return apierr.E(codes.AlreadyExists, "FILE_EXISTS", path+": file exists", "path", path)
	case errors.Is(err, syscall.EISDIR):
		return apierr.E(codes.FailedPrecondition, "IS_A_DIRECTORY", path+": is a directory", "path", path)
	}
	return apierr.E(codes.FailedPrecondition, "FILE_ERROR", path+": "+err.Error(), "path", path)
}

// ReadFile implements FileService.
func (h *host) ReadFile(q *guestv1.ReadFileRequest, s grpc.ServerStreamingServer[guestv1.ReadFileResponse]) error {
	full, err := h.inside(q.GetSandboxId(), q.GetPath())
	if err != nil {
		return err
	}
	file, err := describe(full, q.GetPath())
	if err != nil {
		return err
	}
	f, err := os.Open(full)
	if err != nil {
		return fileError(err, q.GetPath())
	}
	defer f.Close()
	var r io.Reader = io.NewSectionReader(f, q.GetOffset(), 1<<62)
	if q.GetLimit() > 0 {
		r = io.LimitReader(r, q.GetLimit())
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return fileError(err, q.GetPath())
		}
		if n == 0 && file == nil {
			return nil
		}
		if err := s.Send(&guestv1.ReadFileResponse{File: file, Data: buf[:n]}); err != nil {
			return err
		}
		file = nil
	}
}

// WriteFile implements FileService.
func (h *host) WriteFile(s grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
	m, err := s.Recv()
	if err != nil {
		return err
	}
	head := m.GetHeader()
	full, err := h.inside(m.GetSandboxId(), head.GetPath())
	if err != nil {
		return err
	}
	if head.GetMakeParents() {
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return fileError(err, head.GetPath())
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(full), ".new-*")
	if err != nil {
		return fileError(err, head.GetPath())
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	var written int64
	for {
		n, err := tmp.Write(m.GetData())
		if err != nil {
			return fileError(err, head.GetPath())
		}
		written += int64(n)
		if m, err = s.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	mode := fs.FileMode(head.GetMode())
	if mode == 0 {
		mode = 0o644
	}
	if err := errors.Join(tmp.Chmod(mode), os.Rename(tmp.Name(), full)); err != nil {
		return fileError(err, head.GetPath())
	}
	file, err := describe(full, head.GetPath())
	if err != nil {
		return err
	}
	return s.SendAndClose(&guestv1.WriteFileResponse{File: file, WrittenBytes: written})
}

// StatFile implements FileService.
func (h *host) StatFile(_ context.Context, q *guestv1.StatFileRequest) (*guestv1.StatFileResponse, error) {
	full, err := h.inside(q.GetSandboxId(), q.GetPath())
	if err != nil {
		return nil, err
	}
	f, err := describe(full, q.GetPath())
	return &guestv1.StatFileResponse{File: f}, err
}

// ListFiles implements FileService. One page has everything.
func (h *host) ListFiles(_ context.Context, q *guestv1.ListFilesRequest) (*guestv1.ListFilesResponse, error) {
	path := "/" + q.GetPath()
	full, err := h.inside(q.GetSandboxId(), path)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(full)
	if err != nil {
		return nil, fileError(err, path)
	}
	res := &guestv1.ListFilesResponse{}
	for _, e := range entries {
		f, err := describe(filepath.Join(full, e.Name()), filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		res.Files = append(res.Files, f)
	}
	return res, nil
}

// MakeDirectory implements FileService.
func (h *host) MakeDirectory(_ context.Context, q *guestv1.MakeDirectoryRequest) (*guestv1.MakeDirectoryResponse, error) {
	full, err := h.inside(q.GetSandboxId(), q.GetPath())
	if err == nil {
		err = os.MkdirAll(full, 0o755)
	}
	if err != nil {
		return nil, err
	}
	f, err := describe(full, q.GetPath())
	return &guestv1.MakeDirectoryResponse{File: f}, err
}

// MoveFile implements FileService.
func (h *host) MoveFile(_ context.Context, q *guestv1.MoveFileRequest) (*guestv1.MoveFileResponse, error) {
	from, err := h.inside(q.GetSandboxId(), q.GetSource())
	if err != nil {
		return nil, err
	}
	to, err := h.inside(q.GetSandboxId(), q.GetDestination())
	if err != nil {
		return nil, err
	}
	if err := os.Rename(from, to); err != nil {
		return nil, fileError(err, q.GetSource())
	}
	f, err := describe(to, q.GetDestination())
	return &guestv1.MoveFileResponse{File: f}, err
}

// RemoveFile implements FileService.
func (h *host) RemoveFile(_ context.Context, q *guestv1.RemoveFileRequest) (*guestv1.RemoveFileResponse, error) {
	full, err := h.inside(q.GetSandboxId(), q.GetPath())
	if err == nil && q.GetRecursive() {
		err = os.RemoveAll(full)
	} else if err == nil {
		err = os.Remove(full)
	}
	if err != nil {
		return nil, fileError(err, q.GetPath())
	}
	return &guestv1.RemoveFileResponse{}, nil
}

// WatchFiles implements FileService. It tells one change, and then the end of the watch, as a guest does whose watch overflowed.
func (h *host) WatchFiles(q *guestv1.WatchFilesRequest, s grpc.ServerStreamingServer[guestv1.WatchFilesResponse]) error {
	if _, err := h.inside(q.GetSandboxId(), q.GetPath()); err != nil {
		return err
	}
	for _, m := range []*guestv1.WatchFilesResponse{{Ready: true}, {Type: guestv1.FileEventType_FILE_EVENT_TYPE_CREATED, Path: q.GetPath() + "/new"}} {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return apierr.E(codes.Aborted, "WATCH_LOST", "the watch was lost; list the directory again")
}
