package main

import (
	"context"
	"fmt"
	"time"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// benchRestore spawns sandboxes from templates of three memory sizes, whose memory was touched before it was saved, and takes the time
// from the request until a first exec is answered. Beside it, QEMU restores the same guest with all of its memory read first.
func benchRestore(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	sizes := []uint32{256, 1024, 4096}
	spawn := map[uint32]series{}
	for _, mb := range sizes {
		name := fmt.Sprintf("touched-%d", mb)
		if err := e.touchedTemplate(ctx, name, mb); err != nil {
			return nil, err
		}
		for i := range e.runs + 1 {
			took, err := e.spawnToExec(ctx, name)
			if err != nil {
				return nil, err
			}
			if i > 0 { // The first one records the working set.
				spawn[mb] = append(spawn[mb], took)
			}
		}
		spawn[mb].row(fmt.Sprintf("spawn to first exec, %d MiB", mb), "ms")
	}
	eager, err := e.eagerRestore(ctx, 1024)
	if err != nil {
		return nil, fmt.Errorf("QEMU's eager restore: %w", err)
	}
	eager.row("QEMU's eager restore, 1024 MiB", "ms")
	return map[string]float64{
		"restore_p50_ms":       spawn[256].median(),
		"restore_1g_p50_ms":    spawn[1024].median(),
		"restore_4g_p50_ms":    spawn[4096].median(),
		"restore_4g_over_256m": spawn[4096].median() / spawn[256].median(),
		"eager_1g_p50_ms":      eager.median(),
		"eager_over_lazy_1g":   eager.median() / spawn[1024].median(),
	}, nil
}

// touch writes all the memory that a guest of so many MiB can spare, with something else than zeros.
func touch(mb uint32) string {
	return fmt.Sprintf("python3 -c 'b = bytearray(b\"covey-touched-me\") * (%d << 16); print(len(b))'", mb-mb/8-110)
}

// touchedTemplate makes a template of a guest whose memory was written once.
func (e *env) touchedTemplate(ctx context.Context, name string, mb uint32) error {
	began := time.Now()
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: mb})
	if err != nil {
		return err
	}
	if _, err := e.exec(ctx, sb.GetId(), touch(mb)); err != nil {
		return err
	}
	if err := e.snapshot(ctx, sb.GetId(), name); err != nil {
		return err
	}
	fmt.Printf("  template %s after %.1f s\n", name, time.Since(began).Seconds())
	return e.delete(ctx, sb.GetId())
}

func (e *env) snapshot(ctx context.Context, id, name string) error {
	res, err := e.sandboxes.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: name})
	if err != nil {
		return fmt.Errorf("snapshot %s of %s: %w", name, id, err)
	}
	if res.GetSnapshot().GetKind() != snapshotv1.SnapshotKind_SNAPSHOT_KIND_TEMPLATE {
		return fmt.Errorf("snapshot %s is of kind %s", name, res.GetSnapshot().GetKind())
	}
	return nil
}

// spawnToExec is the time from the request to make a sandbox until a command in it was answered, ms.
func (e *env) spawnToExec(ctx context.Context, template string) (float64, error) {
	began := time.Now()
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: template})
	if err != nil {
		return 0, err
	}
	if _, err := e.exec(ctx, sb.GetId(), "true"); err != nil {
		return 0, err
	}
	took := ms(time.Since(began))
	return took, e.delete(ctx, sb.GetId())
}
