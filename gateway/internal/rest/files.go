package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// chunk is how much of a file is sent in one frame, bytes.
const chunk = 256 << 10

// writeStream writes the body to a file that the query describes.
func (s *Server) writeStream(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	header, err := headerFrom(r.URL.Query(), &guestv1.WriteFileHeader{})
	if err != nil {
		return err
	}
	res, err := s.upload(r.Context(), params["sandbox_id"], header, r.Body)
	if err != nil {
		return err
	}
	return writeMessage(w, res)
}

// headerFrom reads path, user, mode, make_parents and append into a header. Mode is octal.
func headerFrom(v url.Values, h *guestv1.WriteFileHeader) (*guestv1.WriteFileHeader, error) {
	for name := range v {
		value := v.Get(name)
		if !utf8.ValidString(name + value) {
			return nil, apierr.Field(strings.ToValidUTF8(name, "\uFFFD"), "must be UTF-8")
		}
		var err error
		switch name {
		case "path":
			h.Path = value
		case "user":
			h.User = value
		case "mode":
			var n uint64
			n, err = strconv.ParseUint(value, 8, 12)
			h.Mode = uint32(n)
		case "make_parents":
			h.MakeParents, err = strconv.ParseBool(value)
		case "append":
			h.Append, err = strconv.ParseBool(value)
		default:
			return nil, apierr.Field(name, "is not known here; known are path, user, mode, make_parents, append")
		}
		if err != nil {
			return nil, apierr.Field(name, map[bool]string{
				true: "must be permission bits in octal, like 0644", false: "must be true or false",
			}[name == "mode"]+fmt.Sprintf(", got %q", value))
		}
	}
	return h, nil
}

// sourceError wraps the error of reading what is to be written: the client's.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

// upload writes what src gives to a file, in frames, so that its size does not matter. The guest's pace is the reader's pace.
func (s *Server) upload(ctx context.Context, sandbox string, header *guestv1.WriteFileHeader, src io.Reader) (*guestv1.WriteFileResponse, error) {
	// A call that is not finished in order must be cancelled: to the guest, the end of the stream is the end of the file.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := s.files.WriteFile(ctx)
	if err != nil {
		return nil, err
	}
	frame := &guestv1.WriteFileRequest{SandboxId: sandbox, Header: header}
	buf := make([]byte, chunk)
	for {
		n, err := fill(buf, src)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, sourceError{err}
		}
		if frame.Data = buf[:n]; n > 0 || frame.GetHeader() != nil {
			if sent := call.Send(frame); errors.Is(sent, io.EOF) {
				break // The guest has answered; CloseAndRecv gets what.
			} else if sent != nil {
				return nil, sent
			}
		}
		if err != nil {
			break
		}
		frame = &guestv1.WriteFileRequest{}
	}
	return call.CloseAndRecv()
}

// fill reads until b is full or the source ends. Unlike io.ReadFull it lets through a source's own io.ErrUnexpectedEOF: a body that was cut off.
func fill(b []byte, src io.Reader) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = src.Read(b[n:])
		n += k
	}
	return n, err
}

// readFile sends the file, or the part of it, that the JSON body names.
func (s *Server) readFile(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	q := &guestv1.ReadFileRequest{}
	if err := decode(r.Body, q); err != nil {
		return err
	}
	q.SandboxId = params["sandbox_id"]
	return s.download(w, r, q)
}

// readFileByQuery is readFile for links.
func (s *Server) readFileByQuery(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	v := r.URL.Query()
	q := &guestv1.ReadFileRequest{SandboxId: params["sandbox_id"], Path: v.Get("path"), User: v.Get("user")}
	for name, into := range map[string]*int64{"offset": &q.Offset, "limit": &q.Limit} {
		if v.Get(name) == "" {
			continue
		}
		var err error
		if *into, err = strconv.ParseInt(v.Get(name), 10, 64); err != nil {
			return apierr.Field(name, fmt.Sprintf("must be a number of bytes, got %q", v.Get(name)))
		}
	}
	return s.download(w, r, q)
}

func (s *Server) download(w http.ResponseWriter, r *http.Request, q *guestv1.ReadFileRequest) error {
	call, err := s.files.ReadFile(r.Context(), q)
	if err != nil {
		return err
	}
	m, err := call.Recv()
	if errors.Is(err, io.EOF) {
		return errors.New("ReadFile answered nothing")
	}
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	left := expected(m.GetFile(), q)
	if left >= 0 {
		h.Set("Content-Length", strconv.FormatInt(left, 10))
	}
	w.WriteHeader(http.StatusOK)
	for {
		data := m.GetData()
		if left >= 0 {
			// A file that grew meanwhile ends where it did when it was opened.
			data = data[:min(int64(len(data)), left)]
			left -= int64(len(data))
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		if m, err = call.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if left > 0 {
		return fmt.Errorf("%s: %d bytes fewer than it had when it was opened", q.GetPath(), left)
	}
	return nil
}

// expected is how many bytes a read gives; -1 where the file's size does not tell, as for those that a kernel makes up.
func expected(f *guestv1.File, q *guestv1.ReadFileRequest) int64 {
	if f.GetType() != guestv1.FileType_FILE_TYPE_REGULAR || f.GetSizeBytes() == 0 {
		return -1
	}
	n := max(0, f.GetSizeBytes()-q.GetOffset())
	if q.GetLimit() > 0 {
		n = min(n, q.GetLimit())
	}
	return n
}

func writeMessage(w http.ResponseWriter, m proto.Message) error {
	b, err := marshal.Marshal(m)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b) // An error is the client's going away.
	return nil
}
