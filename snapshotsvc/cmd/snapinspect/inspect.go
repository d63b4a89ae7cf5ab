package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coveyhq/covey/snapshotsvc/buildfmt"
	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// report is what there is to say of one path. One of Header, Build and Snapshot is set, unless Error is.
type report struct {
	Path     string    `json:"path"`
	Error    string    `json:"error,omitempty"`
	Header   *header   `json:"header,omitempty"`
	Build    *build    `json:"build,omitempty"`
	Snapshot *snapshot `json:"snapshot,omitempty"`
}

type header struct {
	BlockSize    int64      `json:"block_size"`
	SizeBytes    int64      `json:"size_bytes"`
	Generation   uint32     `json:"generation"`
	Build        snapfmt.ID `json:"build"`
	Parent       snapfmt.ID `json:"parent"`
	Runs         int        `json:"runs"`
	EncodedBytes int64      `json:"encoded_bytes"`
	ZeroBytes    int64      `json:"zero_bytes"`
	Builds       []share    `json:"builds"`
	RunList      []mapped   `json:"mappedlist,omitempty"`
}

// share is how much of a space lies in one build.
type share struct {
	ID        snapfmt.ID `json:"id"`
	LiveBytes int64      `json:"live_bytes"`
}

type mapped struct {
	Off    int64      `json:"off"`
	Len    int64      `json:"len"`
	Build  snapfmt.ID `json:"build"`
	Offset int64      `json:"offset"`
}

type build struct {
	ID          snapfmt.ID     `json:"id"`
	Kind        string         `json:"kind"`
	SizeBytes   int64          `json:"size_bytes"`
	StoredBytes int64          `json:"stored_bytes"`
	FrameSize   int64          `json:"frame_size"`
	Frames      int            `json:"frames"`
	Encodings   map[string]int `json:"encodings"`
	// Verified counts the frames that were read and are right.
	Verified  int      `json:"verified,omitempty"`
	Damage    []string `json:"damage,omitempty"`
	FrameList []frame  `json:"frame_list,omitempty"`
}

type frame struct {
	Offset   int64  `json:"offset"`
	Stored   int    `json:"stored"`
	Len      int    `json:"len"`
	Encoding string `json:"encoding"`
}

type snapshot struct {
	// Manifest is the manifest as it was written.
	Manifest json.RawMessage `json:"manifest"`
	Files    []file          `json:"files"`
	Memory   *report         `json:"memory,omitempty"`
	Disk     *report         `json:"disk,omitempty"`
	Builds   []*report       `json:"builds,omitempty"`
}

// file is one object that the manifest records.
type file struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	// State is "present", "verified", "absent" or what is wrong.
	State string `json:"state"`
}

func (r *report) damaged() bool {
	if r == nil {
		return false
	}
	bad := r.Error != "" || r.Build != nil && len(r.Build.Damage) > 0
	if s := r.Snapshot; s != nil {
		bad = bad || s.Memory.damaged() || s.Disk.damaged()
		for _, f := range s.Files {
			bad = bad || f.State != "present" && f.State != "verified" && f.State != "absent"
		}
		for _, b := range s.Builds {
			bad = bad || b.damaged()
		}
	}
	return bad
}

func inspect(path string, o options) *report {
	r := &report{Path: path}
	if err := r.fill(o); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (r *report) fill(o options) error {
	st, err := os.Stat(r.Path)
	if err != nil {
		return err
	}
	if st.IsDir() {
		r.Snapshot, err = inspectSnapshot(r.Path, o)
		return err
	}
	f, err := os.Open(r.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 8)
	if _, err := io.ReadFull(f, magic); err != nil {
		return errors.New("it is neither a header nor a build: it is too short")
	}
	switch {
	case bytes.Equal(magic, []byte("COVEYHDR")):
		r.Header, err = inspectHeader(r.Path, st.Size(), o)
	case bytes.Equal(magic, []byte("COVEYBLD")):
		r.Build, err = inspectBuild(f, st.Size(), o)
	default:
		err = fmt.Errorf("it is neither a header nor a build: it begins with %q", magic)
	}
	return err
}

func inspectHeader(path string, size int64, o options) (*header, error) {
	if size > snapfmt.MaxEncodedSize {
		return nil, fmt.Errorf("%d bytes are too many for a header", size)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h, err := snapfmt.Decode(raw)
	if err != nil {
		return nil, err
	}
	out := &header{
		BlockSize: h.BlockSize, SizeBytes: h.Size, Generation: h.Generation, Build: h.Build, Parent: h.Parent, Runs: len(h.Runs),
		EncodedBytes: h.EncodedSize(), ZeroBytes: h.Size, Builds: []share{},
	}
	for i, n := range h.LiveBytes() {
		out.Builds = append(out.Builds, share{h.Builds[i], n})
		out.ZeroBytes -= n
	}
	if o.runs {
		for e := range h.Extents(0, h.Size) {
			out.RunList = append(out.RunList, mapped{e.Off, e.Len, h.BuildID(e), e.Offset})
		}
	}
	return out, nil
}

func inspectBuild(f *os.File, size int64, o options) (*build, error) {
	ctx := context.Background()
	r, err := buildfmt.Open(ctx, buildfmt.File(f), size, snapfmt.ID{})
	if err != nil {
		return nil, err
	}
	b := &build{
		ID: r.ID(), Kind: r.Kind().String(), SizeBytes: r.Size(), StoredBytes: size, FrameSize: r.FrameSize(), Frames: r.Frames(), Encodings: map[string]int{},
	}
	if id, err := snapfmt.ParseID(filepath.Base(f.Name())); err == nil && id != r.ID() {
		b.Damage = append(b.Damage, fmt.Sprintf("its name says that it is build %s", id))
	}
	p := make([]byte, r.FrameSize())
	for i := range r.Frames() {
		fr := r.Frame(i)
		b.Encodings[fr.Encoding.String()]++
		if o.runs {
			b.FrameList = append(b.FrameList, frame{fr.Offset, fr.Stored, fr.Len, fr.Encoding.String()})
		}
		if !o.verify {
			continue
		}
		if _, err := r.ReadFrame(ctx, i, p[:fr.Len]); err != nil {
			b.Damage = append(b.Damage, err.Error())
			continue
		}
		b.Verified++
	}
	return b, nil
}

// object is one of a record's objects.
type object struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// record is what this command needs of manifest.json.
type record struct {
	Manifest     json.RawMessage `json:"manifest"`
	State        object          `json:"state"`
	MemoryHeader object          `json:"memory_header"`
	DiskHeader   object          `json:"disk_header"`
	WorkingSet   *object         `json:"working_set"`
	Builds       []struct {
		ID   snapfmt.ID `json:"id"`
		Data object     `json:"data"`
	} `json:"builds"`
}

func readRecord(path string) (*record, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var sealed struct {
		Version int             `json:"version"`
		SHA256  string          `json:"sha256"`
		Body    json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(raw, &sealed); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if sealed.Version != 1 {
		return nil, fmt.Errorf("manifest.json: format version %d; this release reads version 1", sealed.Version)
	}
	if sum := sha256.Sum256(sealed.Body); hex.EncodeToString(sum[:]) != sealed.SHA256 {
		return nil, fmt.Errorf("manifest.json: its SHA-256 is %x, must be %s", sum, sealed.SHA256)
	}
	r := &record{}
	if err := json.Unmarshal(sealed.Body, r); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	return r, nil
}

func inspectSnapshot(dir string, o options) (*snapshot, error) {
	r, err := readRecord(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	s := &snapshot{Manifest: r.Manifest}
	add := func(path, name string, want object) {
		s.Files = append(s.Files, file{Name: name, SizeBytes: want.Size, SHA256: want.SHA256, State: state(path, want, o)})
	}
	add(filepath.Join(dir, "state"), "state", r.State)
	add(filepath.Join(dir, "memory.hdr"), "memory.hdr", r.MemoryHeader)
	add(filepath.Join(dir, "disk.hdr"), "disk.hdr", r.DiskHeader)
	if r.WorkingSet != nil {
		add(filepath.Join(dir, "working-set"), "working-set", *r.WorkingSet)
	}
	s.Memory, s.Disk = inspect(filepath.Join(dir, "memory.hdr"), o), inspect(filepath.Join(dir, "disk.hdr"), o)
	for _, b := range r.Builds {
		// In a host's directory, builds lie beside the snapshots.
		path := filepath.Join(dir, "..", "..", "builds", b.ID.String())
		add(path, "build "+b.ID.String(), b.Data)
		if _, err := os.Stat(path); err == nil {
			s.Builds = append(s.Builds, inspect(path, o))
		}
	}
	return s, nil
}

// state tells whether a file is what was recorded. A build may be absent: it is elsewhere.
func state(path string, want object, o options) string {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return err.Error()
	case st.Size() != want.Size:
		return fmt.Sprintf("it has %d bytes, must have %d", st.Size(), want.Size)
	case !o.verify:
		return "present"
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err.Error()
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != want.SHA256 {
		return fmt.Sprintf("its SHA-256 is %s, must be %s", sum, want.SHA256)
	}
	return "verified"
}
