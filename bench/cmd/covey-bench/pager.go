package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/coveyhq/covey/deploy/mesh"
)

// benchPager runs the host agent's own bench, which is in that module because the pager is internal to it. It needs no mesh.
func benchPager(ctx context.Context, e *env) (map[string]float64, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	root, err := mesh.FindRoot(dir)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "run", "./hostagent/internal/pager/pagerbench", "-runs", strconv.Itoa(e.runs))
	cmd.Dir = root
	cmd.Stderr = os.Stdout // its tables; its metrics are on its standard output, and printed with all others
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pagerbench: %w", err)
	}
	var metrics map[string]float64
	if err := json.Unmarshal(out, &metrics); err != nil {
		return nil, fmt.Errorf("pagerbench's metrics: %w", err)
	}
	return metrics, nil
}
