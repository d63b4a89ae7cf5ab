package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// benchPause pauses a guest that has written 24 MiB since it was started, and right after its resume pauses it again.
func benchPause(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: 512})
	if err != nil {
		return nil, err
	}
	if err := e.snapshot(ctx, sb.GetId(), "pause-me"); err != nil {
		return nil, err
	}
	if err := e.delete(ctx, sb.GetId()); err != nil {
		return nil, err
	}
	var first, again, dirty, ratio series
	for range e.runs {
		sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "pause-me"})
		if err != nil {
			return nil, err
		}
		if _, err := e.exec(ctx, sb.GetId(), "head -c 20m /dev/urandom > /dev/shm/written"); err != nil {
			return nil, err
		}
		one, err := e.pause(ctx, sb.GetId())
		if err != nil {
			return nil, err
		}
		if _, err := e.sandboxes.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: sb.GetId()}); err != nil {
			return nil, err
		}
		two, err := e.pause(ctx, sb.GetId())
		if err != nil {
			return nil, err
		}
		first, dirty = append(first, one.took), append(dirty, float64(one.MemoryDirty)/(1<<20))
		again, ratio = append(again, two.took), append(ratio, float64(two.MemoryWritten+two.DiskWritten)/float64(max(two.MemoryDirty+two.DiskDirty, 1)))
		if err := e.delete(ctx, sb.GetId()); err != nil {
			return nil, err
		}
	}
	dirty.row("dirty memory at the first pause", "MiB")
	first.row("pause until PAUSED", "ms")
	again.row("pause right after a resume", "ms")
	ratio.row("written over dirty of that", "")
	return map[string]float64{
		"pause_p50_ms": first.median(), "pause_dirty_p50_mib": dirty.median(), "pause_again_p50_ms": again.median(), "pause_written_over_dirty": ratio.median(),
	}, nil
}

// paused is what one pause cost.
type paused struct {
	took float64 // ms, as the client sees it
	// As the host agent logs it, bytes.
	MemoryDirty, MemoryWritten, DiskDirty, DiskWritten int64
}

func (e *env) pause(ctx context.Context, id string) (paused, error) {
	began := time.Now()
	_, err := e.sandboxes.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id})
	p := paused{took: ms(time.Since(began))}
	if err != nil {
		return p, fmt.Errorf("pause %s: %w", id, err)
	}
	return p, e.lastPause(id, &p)
}

// lastPause reads the last pause of a sandbox from the host agents' logs, where its stats are.
func (e *env) lastPause(id string, p *paused) error {
	logs, err := filepath.Glob(filepath.Join(e.m.Dir, "logs", "hostagentd-*.log"))
	if err != nil {
		return err
	}
	found := false
	for _, path := range logs {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			var line struct {
				Msg       string `json:"msg"`
				SandboxID string `json:"sandbox_id"`
				Stats     paused `json:"stats"`
			}
			if json.Unmarshal(s.Bytes(), &line) == nil && line.Msg == "sandbox paused" && line.SandboxID == id {
				line.Stats.took = p.took
				*p, found = line.Stats, true
			}
		}
		f.Close()
	}
	if !found {
		return fmt.Errorf("no host agent logged a pause of %s", id)
	}
	return nil
}
