package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/coveyhq/covey/snapshotsvc/snapfmt"
)

// print writes a report for people.
func (r *report) print(w io.Writer) error {
	p := &printer{}
	p.report(r, "")
	_, err := io.WriteString(w, p.String())
	return err
}

type printer struct{ strings.Builder }

func (p *printer) line(indent, format string, args ...any) {
	fmt.Fprintf(p, indent+format+"\n", args...)
}

func (p *printer) report(r *report, indent string) {
	p.line(indent, "%s", r.Path)
	indent += "  "
	if r.Error != "" {
		p.line(indent, "DAMAGED: %s", r.Error)
	}
	switch {
	case r.Header != nil:
		p.header(r.Header, indent)
	case r.Build != nil:
		p.build(r.Build, indent)
	case r.Snapshot != nil:
		p.snapshot(r.Snapshot, indent)
	}
}

func (p *printer) header(h *header, indent string) {
	p.line(indent, "header: %s in blocks of %d, generation %d, %d runs, %d bytes encoded", size(h.SizeBytes), h.BlockSize, h.Generation, h.Runs, h.EncodedBytes)
	p.line(indent, "build %s, parent %s", name(h.Build), name(h.Parent))
	p.line(indent, "zeros: %s", size(h.ZeroBytes))
	for _, b := range h.Builds {
		p.line(indent, "in build %s: %s", b.ID, size(b.LiveBytes))
	}
	for _, r := range h.RunList {
		if r.Build == (snapfmt.ID{}) {
			p.line(indent, "%#12x +%#x zeros", r.Off, r.Len)
			continue
		}
		p.line(indent, "%#12x +%#x build %s at %#x", r.Off, r.Len, r.Build, r.Offset)
	}
}

func (p *printer) build(b *build, indent string) {
	p.line(indent, "build %s of %s: %s, stored in %s, %d frames of %d", b.ID, b.Kind, size(b.SizeBytes), size(b.StoredBytes), b.Frames, b.FrameSize)
	for _, e := range slices.Sorted(maps.Keys(b.Encodings)) {
		p.line(indent, "%s: %d frames", e, b.Encodings[e])
	}
	if b.Verified > 0 {
		p.line(indent, "verified: %d of %d frames", b.Verified, b.Frames)
	}
	for _, d := range b.Damage {
		p.line(indent, "DAMAGED: %s", d)
	}
	for i, f := range b.FrameList {
		p.line(indent, "frame %d: %d bytes at %#x, %s, for %d", i, f.Stored, f.Offset, f.Encoding, f.Len)
	}
}

func (p *printer) snapshot(s *snapshot, indent string) {
	var manifest bytes.Buffer
	if err := json.Indent(&manifest, s.Manifest, indent, "  "); err == nil {
		p.line(indent, "manifest: %s", manifest.String())
	}
	for _, f := range s.Files {
		mark := f.State
		if mark != "present" && mark != "verified" && mark != "absent" {
			mark = "DAMAGED: " + mark
		}
		p.line(indent, "%s: %d bytes, %s", f.Name, f.SizeBytes, mark)
	}
	for _, r := range append([]*report{s.Memory, s.Disk}, s.Builds...) {
		p.report(r, indent)
	}
}

func name(id snapfmt.ID) string {
	if id == (snapfmt.ID{}) {
		return "none"
	}
	return id.String()
}

func size(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
