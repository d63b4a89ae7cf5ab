package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/coveyhq/covey/services/chassis/tenant"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres"
)

// bootstrap makes the key in the file a key of the default tenant. The file is written before the database knows the key: a
// crash in between leaves a file that the next start adopts, not a key whose secret nobody has.
func bootstrap(ctx context.Context, store *postgres.Store, keys *sandbox.Keys, path string) error {
	if path == "" {
		return nil
	}
	return store.LockBootstrap(ctx, func(ctx context.Context) error {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			b = []byte(sandbox.NewSecret() + "\n")
			err = writeSecret(path, b)
		}
		if err != nil {
			return fmt.Errorf("bootstrap_api_key_file: %w", err)
		}
		if err := keys.Adopt(ctx, tenant.Default, sandbox.BootstrapKey, strings.TrimSpace(string(b))); err != nil {
			return fmt.Errorf("bootstrap_api_key_file %s: %w", path, err)
		}
		return nil
	})
}

// writeSecret writes a file durably, readable by its owner alone from the first moment.
func writeSecret(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // Mode 0600.
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
