package registry

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Bounds of what is registered.
const (
	maxBuilds     = 4096
	maxObjectSize = 1 << 44
	maxLabels     = 64
	maxLabelValue = 256
	maxText       = 256
	maxFeatures   = 1024
)

var (
	snapshotID   = regexp.MustCompile(`^snap_[0-9A-HJKMNP-TV-Z]{26}$`)
	templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	objectKey    = regexp.MustCompile(`^[a-z]{1,32}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){1,3}$`)
	buildID      = regexp.MustCompile(`^[0-9a-f]{32}$`)
	hostName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	holderName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$`)
	labelKey     = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,63}$`)
)

// IsID tells an id from a name.
func IsID(ref string) bool { return snapshotID.MatchString(ref) }

func checkID(field, id string) error {
	if !snapshotID.MatchString(id) {
		return Field(field, "must be \"snap_\" and a ULID, got %q", clip(id))
	}
	return nil
}

func checkRef(field, ref string) error {
	if !snapshotID.MatchString(ref) && !templateName.MatchString(ref) {
		return Field(field, "must be a snapshot's id or a template's name, 1 to 63 characters of [a-z0-9._-], got %q", clip(ref))
	}
	return nil
}

func checkName(field, name string) error {
	if !templateName.MatchString(name) || snapshotID.MatchString(name) {
		return Field(field, "must be 1 to 63 characters of [a-z0-9._-], beginning with a letter or digit, and not like an id, got %q", clip(name))
	}
	return nil
}

// check says what of a registration can never be.
func (r *Registration) check() error {
	if !hostName.MatchString(r.HostID) {
		return Field("host_id", "must be 1 to 63 characters of [A-Za-z0-9._-], got %q", clip(r.HostID))
	}
	switch r.Kind {
	case Template:
		if err := checkName("name", r.Name); err != nil {
			return err
		}
	case Pause, Fork, Image:
		if r.Name != "" {
			return Field("name", "must be empty for kind %s, got %q", r.Kind, clip(r.Name))
		}
	default:
		return Field("kind", "must be TEMPLATE, PAUSE, IMAGE or FORK, got %q", string(r.Kind))
	}
	if (r.Tenant == "") != (r.Kind == Image) {
		return Field("tenant_id", "must be empty for kind IMAGE and set for all others, got %q for %s", clip(r.Tenant), r.Kind)
	}
	if len(r.Tenant) > maxText {
		return Field("tenant_id", "must have at most %d bytes, has %d", maxText, len(r.Tenant))
	}
	if err := checkLabels(r.Metadata); err != nil {
		return err
	}
	return r.Manifest.check()
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return Field("metadata", "must have at most %d entries, got %d", maxLabels, len(labels))
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(k) {
			return Field("metadata", "keys must be 1 to 63 characters of [A-Za-z0-9._/-], got %q", clip(k))
		}
		if v := labels[k]; len(v) > maxLabelValue || strings.ContainsRune(v, 0) {
			return Field("metadata", "values must be at most %d bytes without zero bytes; that of %q has %d", maxLabelValue, k, len(v))
		}
	}
	return nil
}

func (m *Manifest) check() error {
	if err := checkID("manifest.snapshot_id", m.SnapshotID); err != nil {
		return err
	}
	if m.ParentID != "" {
		if err := checkID("manifest.parent_id", m.ParentID); err != nil {
			return err
		}
	}
	for name, v := range map[string]string{
		"vmm": m.VMM, "vmm_version": m.VMMVersion, "machine": m.Machine, "accel": m.Accel, "kernel_id": m.KernelID, "image": m.Image, "source_sandbox_id": m.SourceSandboxID,
	} {
		if len(v) > maxText || strings.ContainsRune(v, 0) {
			return Field("manifest."+name, "must be at most %d bytes without zero bytes, has %d", maxText, len(v))
		}
	}
	if m.VCPUs == 0 || m.MemoryBytes <= 0 || m.DiskBytes <= 0 {
		return Field("manifest", "must have positive vcpus, memory_bytes and disk_bytes, got %d, %d and %d", m.VCPUs, m.MemoryBytes, m.DiskBytes)
	}
	if m.CreateTime.Unix() <= 0 {
		return Field("manifest.create_time", "must be set")
	}
	if len(m.CPUFeatures) > maxFeatures || len(m.Builds) > maxBuilds {
		return Field("manifest", "must have at most %d cpu_features and %d builds, got %d and %d", maxFeatures, maxBuilds, len(m.CPUFeatures), len(m.Builds))
	}
	return m.checkObjects()
}

func (m *Manifest) checkObjects() error {
	seen := map[string]Object{}
	check := func(field string, o *Object) error {
		if err := o.check(field); err != nil {
			return err
		}
		if _, twice := seen[o.Key]; twice {
			return Field(field+".key", "%q is named twice", o.Key)
		}
		seen[o.Key] = *o
		return nil
	}
	for _, f := range []struct {
		name     string
		object   *Object
		optional bool
	}{{"state", m.State, false}, {"memory_header", m.MemoryHeader, false}, {"disk_header", m.DiskHeader, false}, {"working_set", m.WorkingSet, true}} {
		if f.object == nil {
			if f.optional {
				continue
			}
			return Field("manifest."+f.name, "must be set")
		}
		if err := check("manifest."+f.name, f.object); err != nil {
			return err
		}
	}
	for i := range m.Builds {
		b := &m.Builds[i]
		if !buildID.MatchString(b.ID) {
			return Field("manifest.builds.id", "must be 32 hexadecimal digits in lower case, got %q", clip(b.ID))
		}
		if b.Kind != string(RoleMemoryBuild) && b.Kind != string(RoleDiskBuild) {
			return Field("manifest.builds.kind", "must be memory or disk, got %q", clip(b.Kind))
		}
		if err := check("manifest.builds.data", &b.Data); err != nil {
			return err
		}
	}
	return nil
}

func (o *Object) check(field string) error {
	switch {
	case !objectKey.MatchString(o.Key):
		return Field(field+".key", "must be like \"builds/<id>\", got %q", clip(o.Key))
	case o.Size < 0 || o.Size > maxObjectSize:
		return Field(field+".size_bytes", "must be 0 to %d, got %d", int64(maxObjectSize), o.Size)
	case len(o.SHA256) != 32:
		return Field(field+".sha256", "must be 32 bytes, got %d", len(o.SHA256))
	}
	return nil
}

// clip keeps errors short.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
