package snapstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// Sum is a SHA-256; it is hexadecimal in JSON.
type Sum [sha256.Size]byte

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes it in hexadecimal.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Sum) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(s) {
		return fmt.Errorf("a SHA-256 must be %d hexadecimal digits, got %.80q", 2*len(s), text)
	}
	copy(s[:], b)
	return nil
}

// Object names bytes that belong to a snapshot.
type Object struct {
	// Key is its name in the registry.
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	SHA256 Sum    `json:"sha256"`
}

// Build names a build and its file.
type Build struct {
	ID snapfmt.ID `json:"id"`
	// Kind is "memory" or "disk".
	Kind string `json:"kind"`
	Data Object `json:"data"`
}

// Record is what one has to know of a snapshot to fetch and restore it anywhere.
type Record struct {
	Manifest     machine.Manifest `json:"manifest"`
	State        Object           `json:"state"`
	MemoryHeader Object           `json:"memory_header"`
	DiskHeader   Object           `json:"disk_header"`
	// WorkingSet is nil where none was recorded.
	WorkingSet *Object `json:"working_set,omitempty"`
	// Builds that the headers name, each once.
	Builds []Build `json:"builds"`
}

// Names of a snapshot's files.
const (
	manifestName   = "manifest.json"
	stateName      = "state"
	memoryName     = "memory.hdr"
	diskName       = "disk.hdr"
	workingSetName = "working-set"
	squashName     = "squash"
)

// Bounds of what is read whole, bytes.
const (
	maxManifest   = 4 << 20
	maxState      = 1 << 30
	maxWorkingSet = 1 << 28
)

// validID is what snapshot ids look like; they name directories.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_]{0,63}$`)

func snapshotKey(id, name string) string { return "snapshots/" + id + "/" + name }

func buildKey(id snapfmt.ID) string { return "builds/" + id.String() }

// check makes sure that a record is one of the snapshot id, and that nothing in it could lead astray.
func (r *Record) check(id string) error {
	man := r.Manifest
	switch {
	case !validID.MatchString(man.ID) || man.ID != id:
		return fmt.Errorf("it is of snapshot %.80q", man.ID)
	case man.MemoryBytes <= 0 || man.MemoryBytes%buildfmt.BlockSize != 0 || man.DiskBytes <= 0 || man.DiskBytes%buildfmt.BlockSize != 0:
		return fmt.Errorf("memory and disk must have positive multiples of %d bytes, have %d and %d", buildfmt.BlockSize, man.MemoryBytes, man.DiskBytes)
	}
	for _, o := range []struct {
		name   string
		object Object
		most   int64
	}{
		{stateName, r.State, maxState}, {memoryName, r.MemoryHeader, snapfmt.MaxEncodedSize}, {diskName, r.DiskHeader, snapfmt.MaxEncodedSize},
	} {
		if err := o.object.check(snapshotKey(id, o.name), o.most); err != nil {
			return err
		}
	}
	if r.WorkingSet != nil {
		if err := r.WorkingSet.check(snapshotKey(id, workingSetName), maxWorkingSet); err != nil {
			return err
		}
	}
	return checkBuilds(r.Builds)
}

func (o Object) check(key string, most int64) error {
	if o.Key != key || o.Size < 0 || o.Size > most {
		return fmt.Errorf("object %s with at most %d bytes is recorded as %.200q with %d", key, most, o.Key, o.Size)
	}
	return nil
}

func checkBuilds(builds []Build) error {
	seen := map[snapfmt.ID]bool{}
	for _, b := range builds {
		if b.ID == (snapfmt.ID{}) || seen[b.ID] || b.Kind != buildfmt.Memory.String() && b.Kind != buildfmt.Disk.String() {
			return fmt.Errorf("build %s of kind %.20q is recorded; kinds are memory and disk, and each build is recorded once", b.ID, b.Kind)
		}
		if err := b.Data.check(buildKey(b.ID), 2*buildfmt.MaxSize); err != nil {
			return err
		}
		seen[b.ID] = true
	}
	return nil
}

// envelope is a JSON file that tells when it was damaged.
type envelope struct {
	Version int             `json:"version"`
	SHA256  Sum             `json:"sha256"`
	Body    json.RawMessage `json:"body"`
}

// envelopeVersion of manifest.json, image.json and squash.json.
const envelopeVersion = 1

func sealJSON(body any) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	sealed, err := json.Marshal(envelope{Version: envelopeVersion, SHA256: sha256.Sum256(raw), Body: raw})
	return append(sealed, '\n'), err
}

func openJSON(sealed []byte, body any) error {
	var e envelope
	dec := json.NewDecoder(bytes.NewReader(sealed))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	if e.Version != envelopeVersion {
		return fmt.Errorf("format version %d; this release reads version %d", e.Version, envelopeVersion)
	}
	if sum := Sum(sha256.Sum256(e.Body)); sum != e.SHA256 {
		return fmt.Errorf("its SHA-256 is %s, must be %s", sum, e.SHA256)
	}
	return json.Unmarshal(e.Body, body)
}

// readJSON reads a sealed file.
func readJSON(path string, body any) error {
	sealed, err := readBounded(path, maxManifest)
	if err != nil {
		return err
	}
	return openJSON(sealed, body)
}

func readRecord(dir, id string) (*Record, error) {
	r := &Record{}
	if err := readJSON(filepath.Join(dir, manifestName), r); err != nil {
		return nil, err
	}
	return r, r.check(id)
}

func readBounded(path string, most int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > most {
		return nil, fmt.Errorf("it has %d bytes; at most %d are legal", st.Size(), most)
	}
	return os.ReadFile(path)
}
