package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Packages that start VMs or whole meshes run one after the other: two cores emulate about one guest at full speed, and
// a test that waits for a guest must not wait for its neighbour's.
var (
	lightPackages = []string{"./proto/...", "./services/...", "./scheduler/...", "./snapshotsvc/...", "./gateway/...", "./bench/..."}
	heavyPackages = []string{"./guest/...", "./hostagent/...", "./deploy/..."}
)

func test(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	pattern := flags.String("run", "", "only tests that match")
	kvm := flags.Bool("require-kvm", false, "fail where KVM does not boot a stock kernel, instead of using emulation")
	if err := flags.Parse(args); err != nil {
		return err
	}
	t, p, err := prepare(ctx, true)
	if err != nil {
		return err
	}
	p.Title("Checking generated code and linting")
	if err := p.Run("generated code", func(func(string)) (string, error) { return "as the proto files give it", check(ctx, nil) }); err != nil {
		return err
	}
	if err := lintSteps(ctx, p, t.Root); err != nil {
		return err
	}
	env := []string{
		"COVEY_ARTIFACTS=" + t.Artifacts, "COVEY_CONSUL_BIN=" + t.Consul, "COVEY_BIN=" + t.Bin,
		"COVEY_REQUIRE=" + map[bool]string{true: "all,kvm", false: "all"}[*kvm],
	}
	p.Title("Testing")
	common := []string{"test", "-count=1", "-timeout=45m"}
	if *pattern != "" {
		common = append(common, "-run="+*pattern)
	}
	light := append(append(common[:len(common):len(common)], "-p=2"), lightPackages...)
	heavy := append(append(common[:len(common):len(common)], "-p=1"), heavyPackages...)
	lightErr := goCommand(ctx, t.Root, env, light...)
	heavyErr := goCommand(ctx, t.Root, env, heavy...)
	if lightErr != nil || heavyErr != nil {
		return fmt.Errorf("tests failed")
	}
	return nil
}

func goCommand(ctx context.Context, root string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args[:1], " "), err)
	}
	return nil
}
