package machine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
)

// source finds what a start begins with: the snapshot that was named, the image, or the image's template, which is made if need be.
func (h *Host) source(ctx context.Context, spec Spec) (source, error) {
	if spec.SnapshotID != "" {
		return h.snapshotSource(ctx, spec)
	}
	if spec.ColdBoot || !h.parts.Driver.Capabilities().LazyMemory {
		return h.imageSource(ctx, spec, "")
	}
	base, err := h.template(ctx, spec)
	if err != nil {
		return source{}, err
	}
	return source{base: base, memory: true, kind: Spawn}, nil
}

func (h *Host) imageSource(ctx context.Context, spec Spec, fallback string) (source, error) {
	base, err := h.parts.Snapshots.OpenImage(ctx, spec.Image)
	if err != nil {
		return source{}, err
	}
	if size := base.Manifest().DiskBytes; spec.DiskBytes() < size {
		base.Release()
		return source{}, &FieldError{"disk_mb", fmt.Sprintf("must be at least %d, the size of image %s, got %d", (size+1<<20-1)>>20, spec.Image, spec.DiskMB)}
	}
	return source{base: base, kind: ColdBoot, fallback: fallback}, nil
}

// snapshotSource is a snapshot's memory and disk or, where the policy says so, its disk alone.
func (h *Host) snapshotSource(ctx context.Context, spec Spec) (source, error) {
	if spec.Policy == DiskOnly {
		return h.savedDisk(ctx, spec, "")
	}
	src, err := h.savedMemory(ctx, spec)
	if restore := (*RestoreError)(nil); errors.As(err, &restore) && spec.Policy == PreferMemory {
		return h.savedDisk(ctx, spec, restore.Error())
	}
	return src, err
}

func (h *Host) savedMemory(ctx context.Context, spec Spec) (source, error) {
	base, err := h.parts.Snapshots.Open(ctx, spec.SnapshotID)
	if errors.Is(err, ErrDamaged) && spec.Policy == PreferMemory {
		// If it is the disk that is damaged, opening it alone will say so.
		return source{}, &RestoreError{SnapshotID: spec.SnapshotID, Err: err}
	}
	if err != nil {
		return source{}, fmt.Errorf("snapshot %s: %w", spec.SnapshotID, err)
	}
	man := base.Manifest()
	if err = locked(spec, man); err == nil {
		err = h.compatible(man)
	}
	if err != nil {
		base.Release()
		return source{}, err
	}
	return source{base: base, memory: true, kind: spec.kind()}, nil
}

// savedDisk is the disk of a snapshot, whatever became of its memory; fallback is why that is not restored, if it was asked for.
func (h *Host) savedDisk(ctx context.Context, spec Spec, fallback string) (source, error) {
	base, err := h.parts.Snapshots.OpenDisk(ctx, spec.SnapshotID)
	if err != nil {
		return source{}, fmt.Errorf("snapshot %s: %w", spec.SnapshotID, err)
	}
	if err := locked(spec, base.Manifest()); err != nil {
		base.Release()
		return source{}, err
	}
	return source{base: base, kind: DiskBoot, fallback: fallback}, nil
}

// diskSource is the source after memory could not be restored: the disk of the same snapshot, or for a stock image its boot.
func (h *Host) diskSource(ctx context.Context, spec Spec, why *RestoreError) (source, error) {
	if spec.SnapshotID == "" {
		return h.imageSource(ctx, spec, why.Error())
	}
	return h.savedDisk(ctx, spec, why.Error())
}

// locked refuses sizes that are not the snapshot's.
func locked(spec Spec, man Manifest) error {
	for _, f := range []struct {
		name       string
		has, asked int64
	}{
		{"vcpus", int64(man.VCPUs), int64(spec.VCPUs)},
		{"memory_mb", man.MemoryBytes >> 20, spec.MemoryMB},
		{"disk_mb", man.DiskBytes >> 20, spec.DiskMB},
	} {
		if f.has != f.asked {
			return &LockedError{SnapshotID: man.ID, Field: f.name, Has: f.has, Asked: f.asked}
		}
	}
	return nil
}

// compatible tells whether this host's VMM can load a state at all, before anything is made for it.
func (h *Host) compatible(man Manifest) error {
	caps := h.parts.Driver.Capabilities()
	var problem string
	switch {
	case man.Driver != caps.Driver:
		problem = fmt.Sprintf("it was saved by %s; this host runs %s", man.Driver, caps.Driver)
	case !slices.Contains(caps.Machines, man.Machine):
		problem = fmt.Sprintf("it belongs to machine model %s; this host has %s", man.Machine, strings.Join(caps.Machines, " and "))
	case len(cpu.Minus(man.CPUFeatures, caps.CPUFeatures)) > 0:
		problem = fmt.Sprintf("its processor has %s, which guests of this host cannot have", cpu.Join(cpu.Minus(man.CPUFeatures, caps.CPUFeatures)))
	case man.Accel != string(caps.Accel):
		problem = fmt.Sprintf("it ran on %s; this host has %s", man.Accel, caps.Accel)
	default:
		return nil
	}
	return &RestoreError{SnapshotID: man.ID, Err: errors.New(problem)}
}

// templateJob is the making of one template; err may be read once done is closed.
type templateJob struct {
	done chan struct{}
	err  error
}

// template pins the template of an image for the spec's sizes. The first that asks has it made, for all that ask meanwhile.
func (h *Host) template(ctx context.Context, spec Spec) (Base, error) {
	baseline := h.baseline.get().Features
	key, err := h.templateKey(ctx, spec, baseline)
	if err != nil {
		return nil, err
	}
	for {
		if slices.Contains(h.parts.Snapshots.Local(), key) {
			base, err := h.parts.Snapshots.Open(ctx, key)
			if err == nil || !errors.Is(err, ErrSnapshotNotFound) && !errors.Is(err, ErrDamaged) {
				return base, err
			}
			h.log.Warn("template cannot be used and is made again", "snapshot_id", key, "image", spec.Image, "error", err)
			if err := h.parts.Snapshots.Remove(ctx, key); err != nil {
				return nil, err
			}
		}
		job, err := h.makeTemplate(ctx, key, spec, baseline)
		if err != nil {
			return nil, err
		}
		select {
		case <-job.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if job.err != nil {
			return nil, fmt.Errorf("first boot of image %s: %w", spec.Image, job.err)
		}
	}
}

// templateKey names a template by all that it depends on: image, kernel, VMM, processor, sizes, and this host, as each makes its own.
func (h *Host) templateKey(ctx context.Context, spec Spec, baseline []string) (string, error) {
	src, err := h.imageSource(ctx, spec, "")
	if err != nil {
		return "", err
	}
	defer src.base.Release()
	caps, processor := h.parts.Driver.Capabilities(), h.parts.Driver.CPU(baseline)
	text := fmt.Appendf(nil, "covey template 1\n%s\n%s\n%s\n%s %s %s %s\n%s\n%d %d %d\n", h.conf.ID, src.base.Manifest().ImageID,
		h.conf.KernelID, caps.Driver, caps.Version, processor.Machine, caps.Accel, h.conf.Cmdline, spec.VCPUs, spec.MemoryMB, spec.DiskMB)
	if len(processor.Masked) > 0 {
		// The others keep the names that they have had since before there were masks.
		text = fmt.Appendf(text, "%s\n", processor.Model)
	}
	sum := sha256.Sum256(text)
	return "snap_" + idText([16]byte(sum[:16])), nil
}

// makeTemplate begins to make a template, or finds the job that does.
func (h *Host) makeTemplate(ctx context.Context, key string, spec Spec, baseline []string) (*templateJob, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if job := h.templates[key]; job != nil {
		return job, nil
	}
	job := &templateJob{done: make(chan struct{})}
	if !h.spawn(func() {
		defer close(job.done)
		defer func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.templates, key)
		}()
		job.err = h.firstBoots(context.WithoutCancel(ctx), key, spec, baseline)
	}) {
		return nil, ErrClosing
	}
	h.templates[key] = job
	return job, nil
}

// maxFirstBoots bounds how often an image is booted for one template.
const maxFirstBoots = 3

// firstBoots is firstBoot, again where the VM ended before its guest served: a guest gives a boot up in which a busy host kept it from measuring its
// timer, as all that is restored from it would have that timer.
func (h *Host) firstBoots(ctx context.Context, key string, spec Spec, baseline []string) error {
	for n := 1; ; n++ {
		err := h.firstBoot(ctx, key, spec, baseline)
		if n == maxFirstBoots || !errors.Is(err, ErrVMDied) {
			return err
		}
		h.log.Warn("the VM of a first boot ended; it is booted again", "image", spec.Image, "error", err)
	}
}

// firstBoot boots an image in a machine that nobody sees and keeps its state as a template. The machine takes no room of its own: who
// waits for it has taken as much and has nothing yet. Its life is not that of a request: others wait for it too.
func (h *Host) firstBoot(ctx context.Context, key string, spec Spec, baseline []string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, h.conf.StartTime)
	defer cancel()
	ctx, span := h.span(ctx, "hostagent.template", key)
	defer func() { span.end(err) }()
	m := h.newMachine(Spec{
		ID: newID("tpl_"), Image: spec.Image, VCPUs: spec.VCPUs, MemoryMB: spec.MemoryMB, DiskMB: spec.DiskMB,
		ColdBoot: true, Network: Network{Disabled: true},
	})
	m.private, m.baseline = true, baseline
	src, err := h.imageSource(ctx, spec, "")
	if err != nil {
		return err
	}
	w := newStopwatch(func(name string) (context.Context, func()) { return h.phase(ctx, name) })
	hold, _, err := m.assemble(ctx, w, src, "")
	if err != nil {
		return err
	}
	defer m.free(ctx, false)
	m.hold = hold
	if err := hold.guest.Warm(ctx); err != nil {
		return fmt.Errorf("guestd: %w", err)
	}
	draft, _, _, err := m.capture(ctx, SnapshotRequest{ID: key, Kind: ImageSnapshot}, false)
	if err != nil {
		return err
	}
	man, stats, err := draft.Commit(ctx)
	if err != nil {
		return errors.Join(err, abort(ctx, draft))
	}
	_, total := w.stop()
	h.log.Info("template made", "snapshot_id", key, "image", spec.Image, "vcpus", spec.VCPUs, "memory_mb", spec.MemoryMB, "disk_mb", spec.DiskMB,
		"boot", total, "stored_bytes", stats.Stored, "manifest_bytes", man.StoredBytes)
	return nil
}
