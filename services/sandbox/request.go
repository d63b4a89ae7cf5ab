package sandbox

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Limits of requests.
const (
	maxVCPUs       = 8
	minMemoryMB    = 128
	maxMemoryMB    = 16384
	maxDiskMB      = 65536
	maxTimeoutSec  = 604800
	maxLifetimeSec = 10 * 365 * 24 * 3600
	maxLabels      = 64
	maxLabelValue  = 1024
	maxEnvEntries  = 128
	maxEnvBytes    = 64 << 10
	maxCIDRs       = 64
	maxCopies      = 64
	maxPageSize    = 1000
	maxRequestID   = 64

	defaultImage    = "base"
	defaultVCPUs    = 1
	defaultMemoryMB = 512
	defaultPageSize = 100
)

// CreateRequest describes the sandbox to make; zero values mean the defaults.
type CreateRequest struct {
	Template                string
	VCPUs, MemoryMB, DiskMB uint32
	TimeoutSec              uint32
	MaxLifetimeSec          uint32
	Metadata                map[string]string
	Env                     Env
	AutoResume              bool
	Network                 Network
	ColdBoot                bool
	RestorePolicy           RestorePolicy
	HostLabels              map[string]string
	AntiAffinity            string
	RequestID               string
}

// ResumeRequest names the sandbox to start again.
type ResumeRequest struct {
	SandboxID, RequestID string
	RestorePolicy        RestorePolicy
	// HostID pins it to a host; empty means any.
	HostID string
}

// ForkRequest names the sandbox to copy.
type ForkRequest struct {
	SandboxID, RequestID string
	// Count of copies; 0 means 1.
	Count    uint32
	Metadata map[string]string
}

// SnapshotRequest names the sandbox to save and the template's name.
type SnapshotRequest struct {
	SandboxID, RequestID string
	Name                 string
	Metadata             map[string]string
}

// ListRequest filters and pages.
type ListRequest struct {
	States   []State
	Metadata map[string]string
	// Labels are "key=value", joined with Metadata.
	Labels    []string
	PageSize  uint32
	PageToken string
}

var (
	labelKey     = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,63}$`)
	templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	envName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	hostName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
)

func (r *CreateRequest) validate() error {
	if r.Template == "" {
		r.Template = defaultImage
	}
	if !templateName.MatchString(r.Template) && !snapshotID.MatchString(r.Template) {
		return field("template", `must be a name of 1 to 63 characters of [a-z0-9._-], or "snap_" and 26 characters, got %q`, clip(r.Template))
	}
	for _, check := range []error{
		within("vcpus", r.VCPUs, 1, maxVCPUs, ""),
		within("memory_mb", r.MemoryMB, minMemoryMB, maxMemoryMB, " MiB"),
		within("disk_mb", r.DiskMB, 1, maxDiskMB, " MiB"),
		within("timeout_sec", r.TimeoutSec, 1, maxTimeoutSec, " s, or 0 for never"),
		within("max_lifetime_sec", r.MaxLifetimeSec, 1, maxLifetimeSec, " s, or 0 for never"),
		checkLabels("metadata", r.Metadata),
		checkLabels("host_labels", r.HostLabels),
		checkAntiAffinity(r.AntiAffinity),
		checkEnv(r.Env),
		r.Network.validate(),
		checkPolicy(r.RestorePolicy),
		checkRequestID(r.RequestID),
	} {
		if check != nil {
			return check
		}
	}
	return nil
}

// within accepts 0, which means the default, and lo to hi.
func within(name string, v, lo, hi uint32, unit string) error {
	if v != 0 && (v < lo || v > hi) {
		return field(name, "must be %d to %d%s, got %d", lo, hi, unit, v)
	}
	return nil
}

func checkLabels(name string, labels map[string]string) error {
	if len(labels) > maxLabels {
		return field(name, "must have at most %d entries, got %d", maxLabels, len(labels))
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(k) {
			return field(name, "keys must be 1 to 63 characters of [A-Za-z0-9._/-], got %q", clip(k))
		}
		if v := labels[k]; len(v) > maxLabelValue || strings.ContainsRune(v, 0) {
			return field(name, "values must be at most %d bytes without zero bytes; that of %q has %d", maxLabelValue, k, len(v))
		}
	}
	return nil
}

func checkEnv(env Env) error {
	if len(env) > maxEnvEntries {
		return field("env", "must have at most %d entries, got %d", maxEnvEntries, len(env))
	}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if !envName.MatchString(k) {
			return field("env", "names must be letters, digits and _ and not begin with a digit, got %q", clip(k))
		}
		if strings.ContainsRune(env[k], 0) {
			return field("env", "values must not contain zero bytes; that of %q does", clip(k))
		}
		size += len(k) + len(env[k]) + 2
	}
	if size > maxEnvBytes {
		return field("env", "must have at most %d bytes, got %d", maxEnvBytes, size)
	}
	return nil
}

func (n *Network) validate() error {
	for name, list := range map[string][]string{"network.allow_cidrs": n.AllowCIDRs, "network.deny_cidrs": n.DenyCIDRs} {
		if len(list) > maxCIDRs {
			return field(name, "must have at most %d entries, got %d", maxCIDRs, len(list))
		}
		for _, c := range list {
			p, err := netip.ParsePrefix(c)
			if err != nil || !p.Addr().Is4() {
				return field(name, "must be IPv4 ranges like 203.0.113.0/24, got %q", clip(c))
			}
		}
	}
	return nil
}

func checkPolicy(p RestorePolicy) error {
	switch p {
	case "", MemoryRequired, PreferMemory, DiskOnly:
		return nil
	}
	return field("restore_policy", "must be MEMORY_REQUIRED, PREFER_MEMORY or DISK_ONLY, got %q", clip(string(p)))
}

func checkRequestID(id string) error {
	if len(id) > maxRequestID {
		return field("request_id", "must have at most %d characters, got %d", maxRequestID, len(id))
	}
	for _, c := range []byte(id) {
		if c < 0x20 || c > 0x7e {
			return field("request_id", "must be printable ASCII characters, got %q", clip(id))
		}
	}
	return nil
}

func (r *ResumeRequest) validate() error {
	if err := checkSandboxID(r.SandboxID); err != nil {
		return err
	}
	if r.HostID != "" && !hostName.MatchString(r.HostID) {
		return field("host_id", "must be 1 to 63 characters of [A-Za-z0-9._-], got %q", clip(r.HostID))
	}
	if err := checkPolicy(r.RestorePolicy); err != nil {
		return err
	}
	return checkRequestID(r.RequestID)
}

func (r *ForkRequest) validate() error {
	if err := checkSandboxID(r.SandboxID); err != nil {
		return err
	}
	if r.Count == 0 {
		r.Count = 1
	}
	if r.Count > maxCopies {
		return field("count", "must be 1 to %d, got %d", maxCopies, r.Count)
	}
	if err := checkLabels("metadata", r.Metadata); err != nil {
		return err
	}
	return checkRequestID(r.RequestID)
}

func (r *SnapshotRequest) validate() error {
	if err := checkSandboxID(r.SandboxID); err != nil {
		return err
	}
	if !templateName.MatchString(r.Name) {
		return field("name", "must be 1 to 63 characters of [a-z0-9._-], beginning with a letter or digit, got %q", clip(r.Name))
	}
	if err := checkLabels("metadata", r.Metadata); err != nil {
		return err
	}
	return checkRequestID(r.RequestID)
}

func (r *ListRequest) validate() error {
	for _, s := range r.States {
		if !slices.Contains(States, s) {
			return field("states", "must be states like RUNNING, got %q", clip(string(s)))
		}
	}
	for _, l := range r.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return field("label", "must be key=value, got %q", clip(l))
		}
		if r.Metadata == nil {
			r.Metadata = map[string]string{}
		}
		if old, twice := r.Metadata[k]; twice && old != v {
			return field("label", "asks for %q twice, with different values", clip(k))
		}
		r.Metadata[k] = v
	}
	if err := checkLabels("metadata", r.Metadata); err != nil {
		return err
	}
	return checkPageSize(&r.PageSize)
}

// checkPageSize gives a size that was left out its default.
func checkPageSize(n *uint32) error {
	if *n == 0 {
		*n = defaultPageSize
	}
	if *n > maxPageSize {
		return field("page_size", "must be 1 to %d, got %d", maxPageSize, *n)
	}
	return nil
}

// Image is a stock image that every host has.
type Image struct {
	Name string `yaml:"name"`
	// DiskMB is the size of its filesystem: default and minimum of a sandbox's disk, MiB.
	DiskMB uint32 `yaml:"disk_mb"`
}

// spec is what the sandbox will be made with, from a stock image.
func (r *CreateRequest) fromImage(img Image) (Spec, error) {
	s := r.spec()
	s.Image, s.Kind = img.Name, Spawn
	if r.ColdBoot {
		s.Kind = ColdBoot
	}
	if s.VCPUs == 0 {
		s.VCPUs = defaultVCPUs
	}
	if s.MemoryMB == 0 {
		s.MemoryMB = defaultMemoryMB
	}
	if s.DiskMB == 0 {
		s.DiskMB = img.DiskMB
	}
	if s.DiskMB < img.DiskMB {
		return Spec{}, field("disk_mb", "must be %d to %d MiB for image %s, got %d", img.DiskMB, maxDiskMB, img.Name, r.DiskMB)
	}
	return s, nil
}

// fromTemplate is what the sandbox will be made with, from a snapshot, which fixes its size.
func (r *CreateRequest) fromTemplate(t Manifest) (Spec, error) {
	for _, f := range []struct {
		name      string
		asked, is uint32
		unit      string
	}{
		{"vcpus", r.VCPUs, t.VCPUs, ""}, {"memory_mb", r.MemoryMB, t.MemoryMB, " MiB"}, {"disk_mb", r.DiskMB, t.DiskMB, " MiB"},
	} {
		if f.asked != 0 && f.asked != f.is {
			return Spec{}, field(f.name, "must be %d%s, which template %s was saved with, or not be given; got %d", f.is, f.unit, r.Template, f.asked)
		}
	}
	if r.ColdBoot {
		return Spec{}, field("cold_boot", "must be false for template %s: only a stock image can be booted; restore_policy DISK_ONLY boots from a template's disk", r.Template)
	}
	s := r.spec()
	s.SnapshotID, s.Kind = t.ID, Spawn
	s.VCPUs, s.MemoryMB, s.DiskMB = t.VCPUs, t.MemoryMB, t.DiskMB
	s.Needs = t.Needs
	return s, nil
}

func (r *CreateRequest) spec() Spec {
	return Spec{
		Template: r.Template, VCPUs: r.VCPUs, MemoryMB: r.MemoryMB, DiskMB: r.DiskMB, TimeoutSec: r.TimeoutSec,
		MaxLifetimeSec: r.MaxLifetimeSec, Env: r.Env, Network: r.Network, AutoResume: r.AutoResume,
		RestorePolicy: r.RestorePolicy, HostLabels: r.HostLabels, AntiAffinity: r.AntiAffinity,
	}
}

// templateNotFound says what there is instead.
func templateNotFound(name string, images []Image) *Error {
	names := make([]string, len(images))
	for i, img := range images {
		names[i] = img.Name
	}
	return &Error{
		Kind: NotFound, Reason: "TEMPLATE_NOT_FOUND",
		Message: fmt.Sprintf("no template %q; stock images are %s; `covey snapshot ls` lists templates", name, strings.Join(names, ", ")),
		Meta:    map[string]string{"template": name, "images": strings.Join(names, ",")},
	}
}
