package rest

import (
	"bytes"
	"io"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/proto"
)

// codec is JSON whose decoder takes the whole body as one value: what follows it is an error, and not left unread.
type codec struct{ *runtime.JSONPb }

// NewDecoder implements runtime.Marshaler. An empty body stands for {}.
func (c codec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(b)) == 0 {
			return io.EOF
		}
		if m, ok := v.(proto.Message); ok {
			return read(b, m)
		}
		return c.Unmarshal(b, v)
	})
}

// decode reads a JSON body into a message.
func decode(r io.Reader, m proto.Message) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := read(b, m); err != nil {
		return malformed(err.Error())
	}
	return nil
}
