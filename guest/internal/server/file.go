package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/guest/internal/account"
	"github.com/coveyhq/covey/guest/internal/files"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// fileService serves covey.guest.v1.FileService.
type fileService struct {
	guestv1.UnimplementedFileServiceServer
	accounts account.Database
}

// Bounds of the contract.
const (
	readFrame     = 256 << 10
	listDepthMax  = 16
	listSizeMax   = 10000
	listSize      = 1000
	listPageBytes = 2 << 20 // below the 4 MiB that gRPC clients take by default
)

func (s *fileService) actor(user string) (*files.Actor, error) {
	u, err := s.accounts.Lookup(user)
	if err != nil {
		return nil, err
	}
	return files.NewActor(u), nil
}

// describer turns files into messages. It knows the accounts as they were when it was made.
type describer struct{ users, groups map[int]string }

func (s *fileService) describer() describer {
	users, groups := s.accounts.Names()
	return describer{users, groups}
}

func (d describer) message(f files.File) *guestv1.File {
	return &guestv1.File{
		Path: f.Path, Name: f.Name(), Type: typeOf(f.Type), SizeBytes: f.Size, Mode: f.Mode, Owner: name(d.users, f.UID),
		Group: name(d.groups, f.GID), ModifiedUnixMs: f.Modified.UnixMilli(), SymlinkTarget: f.SymlinkTarget,
	}
}

func name(names map[int]string, id int) string {
	if n := names[id]; n != "" {
		return n
	}
	return fmt.Sprint(id)
}

func typeOf(m fs.FileMode) guestv1.FileType {
	switch m {
	case 0:
		return guestv1.FileType_FILE_TYPE_REGULAR
	case fs.ModeDir:
		return guestv1.FileType_FILE_TYPE_DIRECTORY
	case fs.ModeSymlink:
		return guestv1.FileType_FILE_TYPE_SYMLINK
	}
	return guestv1.FileType_FILE_TYPE_OTHER
}

func (s *fileService) ReadFile(r *guestv1.ReadFileRequest, st grpc.ServerStreamingServer[guestv1.ReadFileResponse]) error {
	if r.GetOffset() < 0 {
		return field("offset", fmt.Sprintf("must not be negative, got %d", r.GetOffset()))
	}
	if r.GetLimit() < 0 {
		return field("limit", fmt.Sprintf("must not be negative, got %d", r.GetLimit()))
	}
	a, err := s.actor(r.GetUser())
	if err != nil {
		return mapped(err)
	}
	f, info, err := a.Open(r.GetPath())
	if err != nil {
		return mapped(err)
	}
	defer f.Close()
	in, err := files.Section(f, r.GetOffset(), r.GetLimit())
	if err != nil {
		return mapped(err)
	}
	frame := &guestv1.ReadFileResponse{File: s.describer().message(info)}
	buf := make([]byte, min(readFrame, max(info.Size, 4<<10))) // files in /proc say 0
	for first := true; ; first = false {
		n, err := in.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return mapped(err)
		}
		if n == 0 && err != nil && !first {
			return nil
		}
		frame.Data = buf[:n]
		if sendErr := st.Send(frame); sendErr != nil || err != nil {
			return sendErr
		}
		frame.File = nil
	}
}

func (s *fileService) WriteFile(st grpc.ClientStreamingServer[guestv1.WriteFileRequest, guestv1.WriteFileResponse]) error {
	r, err := st.Recv()
	if errors.Is(err, io.EOF) {
		return field("header", "must be set in the first frame, the stream is empty")
	} else if err != nil {
		return err
	}
	h := r.GetHeader()
	if h == nil {
		return field("header", "must be set in the first frame")
	}
	a, err := s.actor(h.GetUser())
	if err != nil {
		return mapped(err)
	}
	w, err := a.Create(h.GetPath(), files.WriteOptions{Mode: h.GetMode(), MakeParents: h.GetMakeParents(), Append: h.GetAppend()})
	if err != nil {
		return mapped(err)
	}
	defer w.Abort()
	written := int64(0)
	for err == nil {
		if len(r.GetData()) > maxFrame {
			return field("data", fmt.Sprintf("must be at most %d bytes a frame, got %d", maxFrame, len(r.GetData())))
		}
		n, err := w.Write(r.GetData())
		written += int64(n)
		if err != nil {
			return mapped(err)
		}
		if r, err = st.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err // the client gave up: the file stays as it was
		}
		if r.GetHeader() != nil {
			return field("header", "must be set in the first frame alone")
		}
	}
	f, err := w.Commit()
	if err != nil {
		return mapped(err)
	}
	return st.SendAndClose(&guestv1.WriteFileResponse{File: s.describer().message(f), WrittenBytes: written})
}

func (s *fileService) StatFile(_ context.Context, r *guestv1.StatFileRequest) (*guestv1.StatFileResponse, error) {
	a, err := s.actor(r.GetUser())
	if err != nil {
		return nil, mapped(err)
	}
	f, err := a.Stat(r.GetPath())
	if err != nil {
		return nil, mapped(err)
	}
	return &guestv1.StatFileResponse{File: s.describer().message(f)}, nil
}

func (s *fileService) ListFiles(_ context.Context, r *guestv1.ListFilesRequest) (*guestv1.ListFilesResponse, error) {
	depth, size := r.GetDepth(), r.GetPageSize()
	if depth > listDepthMax {
		return nil, field("depth", fmt.Sprintf("must be 1 to %d, got %d", listDepthMax, depth))
	}
	if size > listSizeMax {
		return nil, field("page_size", fmt.Sprintf("must be 1 to %d, got %d", listSizeMax, size))
	}
	if size == 0 {
		size = listSize
	}
	a, err := s.actor(r.GetUser())
	if err != nil {
		return nil, mapped(err)
	}
	l, err := a.List(r.GetPath(), files.ListOptions{Depth: int(max(depth, 1)), Limit: int(size), Bytes: listPageBytes, After: r.GetPageToken()})
	if err != nil {
		return nil, mapped(err)
	}
	d := s.describer()
	out := &guestv1.ListFilesResponse{NextPageToken: l.Next}
	for _, f := range l.Files {
		out.Files = append(out.Files, d.message(f))
	}
	return out, nil
}

func (s *fileService) MakeDirectory(_ context.Context, r *guestv1.MakeDirectoryRequest) (*guestv1.MakeDirectoryResponse, error) {
	a, err := s.actor(r.GetUser())
	if err != nil {
		return nil, mapped(err)
	}
	f, err := a.MakeDirectory(r.GetPath(), r.GetMode())
	if err != nil {
		return nil, mapped(err)
	}
	return &guestv1.MakeDirectoryResponse{File: s.describer().message(f)}, nil
}

func (s *fileService) MoveFile(_ context.Context, r *guestv1.MoveFileRequest) (*guestv1.MoveFileResponse, error) {
	a, err := s.actor(r.GetUser())
	if err != nil {
		return nil, mapped(err)
	}
	f, err := a.Move(r.GetSource(), r.GetDestination(), r.GetOverwrite())
	if err != nil {
		return nil, mapped(err)
	}
	return &guestv1.MoveFileResponse{File: s.describer().message(f)}, nil
}

func (s *fileService) RemoveFile(_ context.Context, r *guestv1.RemoveFileRequest) (*guestv1.RemoveFileResponse, error) {
	a, err := s.actor(r.GetUser())
	if err != nil {
		return nil, mapped(err)
	}
	if err := a.Remove(r.GetPath(), r.GetRecursive()); err != nil {
		return nil, mapped(err)
	}
	return &guestv1.RemoveFileResponse{}, nil
}

var eventTypes = map[files.EventType]guestv1.FileEventType{
	files.Created:    guestv1.FileEventType_FILE_EVENT_TYPE_CREATED,
	files.Written:    guestv1.FileEventType_FILE_EVENT_TYPE_WRITTEN,
	files.Removed:    guestv1.FileEventType_FILE_EVENT_TYPE_REMOVED,
	files.Renamed:    guestv1.FileEventType_FILE_EVENT_TYPE_RENAMED,
	files.Attributes: guestv1.FileEventType_FILE_EVENT_TYPE_ATTRIBUTES,
	files.Overflow:   guestv1.FileEventType_FILE_EVENT_TYPE_OVERFLOW,
}

func (s *fileService) WatchFiles(r *guestv1.WatchFilesRequest, st grpc.ServerStreamingServer[guestv1.WatchFilesResponse]) error {
	a, err := s.actor(r.GetUser())
	if err != nil {
		return mapped(err)
	}
	return mapped(a.Watch(st.Context(), r.GetPath(), r.GetRecursive(), func() error {
		return st.Send(&guestv1.WatchFilesResponse{Ready: true})
	}, func(e files.Event) error {
		return st.Send(&guestv1.WatchFilesResponse{Type: eventTypes[e.Type], Path: e.Path})
	}))
}
