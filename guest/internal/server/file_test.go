package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

func TestFilesComeThroughTheServiceWithTheirErrors(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	content := bytes.Repeat([]byte("0123456789"), 150_000)
	w, err := c.WriteFile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, rest := 0, content; len(rest) > 0; i++ {
		n := min(len(rest), 400_000)
		r := &guestv1.WriteFileRequest{Data: rest[:n]}
		if i == 0 {
			r.Header = &guestv1.WriteFileHeader{Path: "a/b", MakeParents: true, Mode: 0o600}
		}
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	written, err := w.CloseAndRecv()
	if err != nil || written.GetWrittenBytes() != int64(len(content)) || written.GetFile().GetOwner() != "user" || written.GetFile().GetMode() != 0o600 {
		t.Errorf("%v, %v", written, err)
	}
	got, first, err := read(ctx, c, &guestv1.ReadFileRequest{Path: "a/b"})
	if err != nil || !bytes.Equal(got, content) || first.GetSizeBytes() != int64(len(content)) || first.GetName() != "b" {
		t.Errorf("%d bytes, %v, %v", len(got), first, err)
	}
	if got, _, err := read(ctx, c, &guestv1.ReadFileRequest{Path: "a/b", Offset: 5, Limit: 7}); err != nil || string(got) != "5678901" {
		t.Errorf("%q, %v", got, err)
	}
	if got, _, err := read(ctx, c, &guestv1.ReadFileRequest{Path: "/proc/self/comm", User: "root"}); err != nil || len(got) == 0 {
		t.Errorf("a file without a size: %q, %v", got, err)
	}
	for _, e := range []struct {
		path, reason string
		code         codes.Code
	}{
		{"../x", "INVALID_FIELD", codes.InvalidArgument}, {"none", "FILE_NOT_FOUND", codes.NotFound}, {"a", "IS_A_DIRECTORY", codes.FailedPrecondition},
		{"/proc/1/environ", "PERMISSION_DENIED", codes.PermissionDenied}, {"a/b/c", "NOT_A_DIRECTORY", codes.FailedPrecondition},
		{strings.Repeat("x", 300), "NAME_TOO_LONG", codes.InvalidArgument},
	} {
		_, _, err := read(ctx, c, &guestv1.ReadFileRequest{Path: e.path})
		wantError(t, err, e.code, e.reason)
	}
	_, err = c.MoveFile(ctx, &guestv1.MoveFileRequest{Source: "a", Destination: "a"})
	wantError(t, err, codes.AlreadyExists, "FILE_EXISTS")
	_, err = c.RemoveFile(ctx, &guestv1.RemoveFileRequest{Path: "a"})
	wantError(t, err, codes.FailedPrecondition, "DIRECTORY_NOT_EMPTY")
	_, err = c.ListFiles(ctx, &guestv1.ListFilesRequest{Depth: 17})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	_, err = c.StatFile(ctx, &guestv1.StatFileRequest{Path: "a", User: "nobody-such"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD")
	if l, err := c.ListFiles(ctx, &guestv1.ListFilesRequest{Depth: 2}); err != nil || len(l.GetFiles()) != 2 || l.GetFiles()[1].GetPath() != f.home+"/a/b" {
		t.Errorf("%v, %v", l, err)
	}
	if m, err := c.MakeDirectory(ctx, &guestv1.MakeDirectoryRequest{Path: "d"}); err != nil || m.GetFile().GetType() != guestv1.FileType_FILE_TYPE_DIRECTORY {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := c.RemoveFile(ctx, &guestv1.RemoveFileRequest{Path: "a", Recursive: true}); err != nil {
		t.Error(err)
	}
}

func read(ctx context.Context, c *client, r *guestv1.ReadFileRequest) (all []byte, first *guestv1.File, err error) {
	st, err := c.ReadFile(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return all, first, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if m.GetFile() != nil {
			first = m.GetFile()
		}
		if len(m.GetData()) > readFrame {
			return nil, nil, fmt.Errorf("a frame of %d bytes", len(m.GetData()))
		}
		all = append(all, m.GetData()...)
	}
}

func TestAnUploadThatIsGivenUpLeavesNothing(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	gone, leave := context.WithCancel(ctx)
	w, err := c.WriteFile(gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(&guestv1.WriteFileRequest{Header: &guestv1.WriteFileHeader{Path: "f"}, Data: []byte("half")}); err != nil {
		t.Fatal(err)
	}
	entries := func() int {
		t.Helper()
		l, err := c.ListFiles(ctx, &guestv1.ListFilesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(l.GetFiles())
	}
	for entries() == 0 { // until it has arrived
	}
	leave()
	for entries() != 0 {
	}
}

func TestAWatchSaysReadyAndThenWhatHappens(t *testing.T) {
	f := newFixture(t)
	ctx, c := testContext(t), f.dial()
	st, err := c.WatchFiles(ctx, &guestv1.WatchFilesRequest{Path: "."})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || !r.GetReady() {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := c.MakeDirectory(ctx, &guestv1.MakeDirectoryRequest{Path: "d"}); err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || r.GetType() != guestv1.FileEventType_FILE_EVENT_TYPE_CREATED || r.GetPath() != f.home+"/d" {
		t.Errorf("%v, %v", r, err)
	}
}
