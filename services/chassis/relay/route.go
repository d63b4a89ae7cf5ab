package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxSandboxID bounds what is taken for an id, bytes; Covey's have 29.
const maxSandboxID = 128

// sandboxID reads field 1, a string, of a serialised message, and skips the rest unread. Where the field stands more than once the last one
// counts, as for every protobuf decoder.
func sandboxID(data mem.BufferSlice) (string, error) {
	r := data.Reader()
	defer r.Close()
	id := ""
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil {
			return "", malformed(err)
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber {
			return "", malformed(fmt.Errorf("field number of tag %#x", tag))
		}
		if num == 1 && typ == protowire.BytesType {
			id, err = readString(r)
		} else {
			err = skip(r, typ)
		}
		if err != nil {
			return "", malformed(err)
		}
	}
	return id, nil
}

func readString(r *mem.Reader) (string, error) {
	n, err := length(r)
	if err != nil {
		return "", err
	}
	if n > maxSandboxID {
		return "", fmt.Errorf("field 1 has %d bytes, a sandbox id has at most %d", n, maxSandboxID)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return string(b), err
}

// length reads a length that the rest of the message must have.
func length(r *mem.Reader) (int, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, err
	}
	if n > uint64(r.Remaining()) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(n), nil
}

func skip(r *mem.Reader, typ protowire.Type) error {
	n := 0
	switch typ {
	case protowire.VarintType:
		_, err := binary.ReadUvarint(r)
		return err
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		var err error
		if n, err = length(r); err != nil {
			return err
		}
	default: // Groups are not in proto3.
		return fmt.Errorf("wire type %d", typ)
	}
	if n > r.Remaining() {
		return io.ErrUnexpectedEOF
	}
	_, err := r.Discard(n)
	return err
}

func malformed(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("malformed message: %w", err)
}
