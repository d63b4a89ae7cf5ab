package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"github.com/coveyhq/covey/deploy/mesh"
)

func init() {
	benches["pager"] = bench{"page faults on the real userfaultfd, beside a straight-line handler", benchPager}
}

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
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, &out), os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("pagerbench: %w", err)
	}
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	var metrics map[string]float64
	if err := json.Unmarshal(lines[len(lines)-1], &metrics); err != nil {
		return nil, fmt.Errorf("pagerbench's last line: %w", err)
	}
	return metrics, nil
}
