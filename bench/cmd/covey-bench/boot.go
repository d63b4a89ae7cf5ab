package main

import (
	"context"
	"fmt"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// benchBoot boots sandboxes one after the other and reads each start's receipt: from the host's acceptance, slot, disk
// and pager included, until guestd answered.
func benchBoot(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	var total series
	phases := map[string]series{}
	var order []string
	for i := range e.runs {
		s, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", ColdBoot: true, MemoryMb: 512})
		if err != nil {
			return nil, err
		}
		got, err := e.sandboxes.GetRestoreReceipt(ctx, &sandboxv1.GetRestoreReceiptRequest{SandboxId: s.GetId()})
		if err != nil {
			return nil, err
		}
		r := got.GetReceipt()
		if r.GetKind() != sandboxv1.StartKind_START_KIND_COLD_BOOT {
			return nil, fmt.Errorf("the receipt says %v, not a cold boot", r.GetKind())
		}
		total = append(total, float64(r.GetTotalUsec())/1000)
		for _, p := range r.GetPhases() {
			if _, ok := phases[p.GetName()]; !ok {
				order = append(order, p.GetName())
			}
			phases[p.GetName()] = append(phases[p.GetName()], float64(p.GetDurationUsec())/1000)
		}
		fmt.Printf("  boot %2d of %d: %.0f ms\n", i+1, e.runs, total[len(total)-1])
		if err := e.delete(ctx, s.GetId()); err != nil {
			return nil, err
		}
	}
	for _, name := range order {
		phases[name].row("phase "+name, "ms")
	}
	total.row("boot", "ms")
	return map[string]float64{"boot_p50_ms": total.median()}, nil
}
