package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/format"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coveyhq/covey/deploy/mesh"
)

// lint fails if gofmt, go vet or staticcheck find something in the checkout, and says what.
func lint(ctx context.Context, _ []string) error {
	root, err := checkout()
	if err != nil {
		return err
	}
	p := mesh.NewProgress(os.Stdout)
	p.Title("Linting")
	return lintSteps(ctx, p, root)
}

// lintSteps takes every step, whatever the others find.
func lintSteps(ctx context.Context, p *mesh.Progress, root string) error {
	packages := append(lightPackages[:len(lightPackages):len(lightPackages)], heavyPackages...)
	steps := []struct {
		name string
		do   func() (note string, err error)
	}{
		{"gofmt", func() (string, error) { return checkFormat(root) }},
		{"go vet", func() (string, error) { return "", goCommand(ctx, root, nil, append([]string{"vet"}, packages...)...) }},
		{"staticcheck", func() (string, error) {
			tools, err := buildTools(ctx, root)
			if err != nil {
				return "", err
			}
			return "", tool(ctx, root, tools, "staticcheck", packages...)
		}},
	}
	var errs []error
	for _, s := range steps {
		errs = append(errs, p.Run(s.name, func(func(string)) (string, error) { return s.do() }))
	}
	return errors.Join(errs...)
}

// checkFormat names the files that gofmt would change.
func checkFormat(root string) (note string, err error) {
	var wrong []error
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		files++
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		want, err := format.Source(have)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", path, err))
		} else if !bytes.Equal(have, want) {
			wrong = append(wrong, fmt.Errorf("%s is not as gofmt writes it", path))
		}
		return nil
	})
	return fmt.Sprintf("%d files", files), errors.Join(append(wrong, err)...)
}
