package statefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

const (
	magicSize = 7
	header    = 52
	// MaxDescription and MaxBody bound the parts, in bytes; VMMs write some 20 to 60 KiB.
	MaxDescription = 64 << 10
	MaxBody        = 64 << 20
)

// Format is a driver's kind of state files.
type Format struct {
	// Magic is seven bytes that no other driver has.
	Magic string
	// Version is written; versions from Oldest on are read.
	Oldest, Version byte
}

// Encode makes the bytes of a file.
func (f Format) Encode(description any, body []byte) ([]byte, error) {
	d, err := json.Marshal(description)
	if err != nil {
		return nil, err
	}
	if len(d) > MaxDescription || len(body) > MaxBody {
		return nil, fmt.Errorf("a state of %d bytes with a description of %d, at most %d and %d are legal", len(body), len(d), MaxBody, MaxDescription)
	}
	b := make([]byte, header, header+len(d)+len(body))
	copy(b[:magicSize], f.Magic)
	b[magicSize] = f.Version
	binary.LittleEndian.PutUint32(b[8:], uint32(len(d)))
	binary.LittleEndian.PutUint64(b[12:], uint64(len(body)))
	b = append(append(b, d...), body...)
	sum := sha256.Sum256(b[header:])
	copy(b[20:], sum[:])
	return b, nil
}

// Decode verifies the bytes of a file, fills in its description, and returns its body, which is part of b.
func (f Format) Decode(b []byte, description any) (body []byte, err error) {
	if len(b) < header || string(b[:magicSize]) != f.Magic {
		return nil, fmt.Errorf("%w: it is no state file of this driver", vmm.ErrIncompatible)
	}
	if v := b[magicSize]; v < f.Oldest || v > f.Version {
		return nil, fmt.Errorf("%w: its format is %d, this host agent reads %d to %d", vmm.ErrIncompatible, v, f.Oldest, f.Version)
	}
	d, n := uint64(binary.LittleEndian.Uint32(b[8:])), binary.LittleEndian.Uint64(b[12:])
	rest := b[header:]
	if d > MaxDescription || n > MaxBody || d+n != uint64(len(rest)) {
		return nil, fmt.Errorf("%w: it has %d bytes after its header, which announces %d and %d", vmm.ErrIncompatible, len(rest), d, n)
	}
	if sum := sha256.Sum256(rest); !bytes.Equal(sum[:], b[20:header]) {
		return nil, fmt.Errorf("%w: it is damaged: its checksum is wrong", vmm.ErrIncompatible)
	}
	if err := json.Unmarshal(rest[:d], description); err != nil {
		return nil, fmt.Errorf("%w: its description: %w", vmm.ErrIncompatible, err)
	}
	return rest[d:], nil
}

// Write writes a file, which only the agent may read.
func (f Format) Write(path string, description any, body []byte) error {
	b, err := f.Encode(description, body)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// Read is Decode of a file.
func (f Format) Read(path string, description any) (body []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, header+MaxDescription+MaxBody+1))
	if err != nil {
		return nil, err
	}
	return f.Decode(b, description)
}

// Body reads what a VMM has written, all of which must be there.
func Body(f *os.File) ([]byte, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, MaxBody+1))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || len(b) > MaxBody {
		return nil, fmt.Errorf("the VMM has written a state of %d bytes, want 1 to %d", len(b), MaxBody)
	}
	return b, nil
}
