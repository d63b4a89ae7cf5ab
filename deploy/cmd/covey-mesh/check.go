package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/coveyhq/covey/deploy/mesh"
)

// generate makes proto/gen from proto/covey with the tools that deploy/tools pins.
func generate(ctx context.Context, _ []string) error {
	root, err := checkout()
	if err != nil {
		return err
	}
	tools, err := buildTools(ctx, root)
	if err != nil {
		return err
	}
	return generateInto(ctx, root, tools, root)
}

// check fails if the checked-in generated code is not what the proto files give.
func check(ctx context.Context, _ []string) error {
	root, err := checkout()
	if err != nil {
		return err
	}
	tools, err := buildTools(ctx, root)
	if err != nil {
		return err
	}
	if err := tool(ctx, root, tools, "buf", "lint", "proto"); err != nil {
		return fmt.Errorf("buf lint: %w", err)
	}
	tmp, err := os.MkdirTemp("", "covey-gen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := generateInto(ctx, root, tools, tmp); err != nil {
		return err
	}
	return compareTrees(filepath.Join(root, "proto", "gen"), filepath.Join(tmp, "proto", "gen"))
}

func buildTools(ctx context.Context, root string) (string, error) {
	into := filepath.Join(mesh.CacheDir(), "tools")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", into+"/", "tool")
	cmd.Dir = filepath.Join(root, "deploy", "tools")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := os.MkdirAll(into, 0o755); err != nil {
		return "", err
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build buf and its plugins from deploy/tools: %w", err)
	}
	return into, nil
}

func generateInto(ctx context.Context, root, tools, out string) error {
	return tool(ctx, root, tools, "buf", "generate", "--template", "proto/buf.gen.yaml", "--path", "proto/covey", "-o", out)
}

func tool(ctx context.Context, root, tools, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(tools, name), args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// compareTrees names every file that differs or is in one tree only.
func compareTrees(have, want string) error {
	var errs []error
	each := func(a, b, what string, equal bool) error {
		return filepath.WalkDir(a, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(a, path)
			if err != nil {
				return err
			}
			x, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			y, err := os.ReadFile(filepath.Join(b, rel))
			if errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("proto/gen/%s %s", rel, what))
				return nil
			}
			if err == nil && equal && !bytes.Equal(x, y) {
				errs = append(errs, fmt.Errorf("proto/gen/%s is out of date", rel))
			}
			return err
		})
	}
	if err := each(have, want, "is generated from nothing", true); err != nil {
		return err
	}
	if err := each(want, have, "is missing", false); err != nil {
		return err
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w\nwhat to do: make generate, and commit proto/gen", errors.Join(errs...))
	}
	return nil
}
