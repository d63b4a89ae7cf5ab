package rest

import (
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

// maxField bounds a form's field that is no file, bytes.
const maxField = 8 << 10

// writeForm writes the files of a multipart form. Fields and query have the names that headerFrom knows; a field holds for the files after it. A path
// that ends in "/", or none, has the file's own name added.
func (s *Server) writeForm(w http.ResponseWriter, r *http.Request, params map[string]string) error {
	form, err := r.MultipartReader()
	if err != nil {
		return refusal{http.StatusUnsupportedMediaType, apierr.E(codes.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
			"the body must be multipart/form-data with the field path and the file; files/stream/write takes the bare file")}
	}
	header, err := headerFrom(r.URL.Query(), &guestv1.WriteFileHeader{})
	if err != nil {
		return err
	}
	var parts, paths []string
	late := "" // a field since the last file
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return sourceError{err}
		}
		if part.FileName() == "" {
			if err := field(part, header); err != nil {
				return err
			}
			late = part.FormName()
			continue
		}
		late = ""
		if !utf8.ValidString(part.FileName()) {
			return apierr.Field("file", "the file's name must be UTF-8")
		}
		res, err := s.upload(r.Context(), params["sandbox_id"], named(header, part.FileName()), part)
		if err != nil {
			return err
		}
		b, err := marshal.Marshal(res)
		if err != nil {
			return err
		}
		parts, paths = append(parts, string(b)), append(paths, res.GetFile().GetPath())
	}
	if len(parts) == 0 {
		return apierr.Field("file", "the form has no file: a part with a file name, after the field path")
	}
	if late != "" {
		return apierr.Field(late, "must come before the file that it is for, which is sent on as it comes; already written: "+strings.Join(paths, ", "))
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"files":[%s]}`, strings.Join(parts, ","))
	return nil
}

// field takes a part that is no file over into the header.
func field(part *multipart.Part, h *guestv1.WriteFileHeader) error {
	b, err := io.ReadAll(io.LimitReader(part, maxField+1))
	if err != nil {
		return sourceError{err}
	}
	if len(b) > maxField {
		return apierr.Field(part.FormName(), fmt.Sprintf("must have at most %d bytes; a file needs a file name in its part", maxField))
	}
	_, err = headerFrom(url.Values{part.FormName(): {string(b)}}, h)
	return err
}

// named is the header of one file of a form.
func named(h *guestv1.WriteFileHeader, file string) *guestv1.WriteFileHeader {
	out := proto.CloneOf(h)
	if out.GetPath() == "" || strings.HasSuffix(out.GetPath(), "/") {
		out.Path += file
	}
	return out
}
