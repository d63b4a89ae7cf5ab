package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/snapshotsvc/postgres"
	"github.com/coveyhq/covey/snapshotsvc/registry"
	"github.com/coveyhq/covey/snapshotsvc/store"
)

// Kinds of object stores.
const (
	directoryStore = "directory"
	s3Store        = "s3"
)

// Config is snapshotd's configuration file.
type Config struct {
	Chassis  chassis.Config  `yaml:"chassis"`
	Database postgres.Config `yaml:"database"`
	Store    StoreConfig     `yaml:"store"`
	// Quota is every tenant's, but of those that Quotas names. Default: no bounds.
	Quota  registry.Quota            `yaml:"quota"`
	Quotas map[string]registry.Quota `yaml:"quotas"`
	// Collect is how often garbage is collected, beside after each deletion. Default 30s.
	Collect time.Duration `yaml:"collect"`
	// Sweep is how often the store is searched for bytes that nothing knows of. Default 1h.
	Sweep time.Duration `yaml:"sweep"`
}

// StoreConfig says where the bytes are.
type StoreConfig struct {
	// Kind is "directory" (the default) or "s3".
	Kind string `yaml:"kind"`
	// Directory is an absolute path, for kind directory. Nothing else may be in it.
	Directory string   `yaml:"directory"`
	S3        S3Config `yaml:"s3"`
}

// S3Config is a bucket, for kind s3. No other registry may use the same bucket and prefix.
type S3Config struct {
	// Endpoint is host:port.
	Endpoint string `yaml:"endpoint"`
	// Insecure speaks HTTP instead of HTTPS.
	Insecure bool   `yaml:"insecure"`
	Region   string `yaml:"region"`
	Bucket   string `yaml:"bucket"`
	Prefix   string `yaml:"prefix"`
	// AccessKey and SecretKey; left out, the usual AWS variables, files and instance roles are used.
	AccessKey string         `yaml:"access_key"`
	SecretKey chassis.Secret `yaml:"secret_key"`
	// PathStyle puts the bucket into the path instead of the host name.
	PathStyle bool `yaml:"path_style"`
}

func loadConfig(path string) (Config, error) {
	c := Config{Chassis: chassis.Config{Service: caller.Snapshot}, Store: StoreConfig{Kind: directoryStore}}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
	}
	if err := c.Chassis.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("chassis: %w", err))
	}
	if c.Database.DSN == "" {
		bad("database.dsn", "must be a PostgreSQL connection string, is empty")
	}
	if c.Database.MaxConns < 0 {
		bad("database.max_conns", "must be positive, got %d", c.Database.MaxConns)
	}
	switch c.Store.Kind {
	case directoryStore:
		if !filepath.IsAbs(c.Store.Directory) {
			bad("store.directory", "must be an absolute path, got %q", c.Store.Directory)
		}
	case s3Store:
		if c.Store.S3.Endpoint == "" || c.Store.S3.Bucket == "" {
			bad("store.s3", "must have endpoint and bucket, got %q and %q", c.Store.S3.Endpoint, c.Store.S3.Bucket)
		}
		if (c.Store.S3.AccessKey == "") != (c.Store.S3.SecretKey == "") {
			bad("store.s3", "must have both access_key and secret_key, or neither")
		}
	default:
		bad("store.kind", "must be %s or %s, got %q", directoryStore, s3Store, c.Store.Kind)
	}
	quotas := map[string]registry.Quota{"quota": c.Quota}
	for t, q := range c.Quotas {
		quotas["quotas."+t] = q
	}
	for key, q := range quotas {
		if q.Snapshots < 0 || q.Bytes < 0 {
			bad(key, "must not be negative, got %d snapshots and %d bytes", q.Snapshots, q.Bytes)
		}
	}
	if c.Collect < 0 || c.Sweep < 0 {
		bad("collect", "and sweep must be positive, got %s and %s", c.Collect, c.Sweep)
	}
	return errors.Join(errs...)
}

// open opens the object store.
func (c *StoreConfig) open(ctx context.Context) (registry.Store, error) {
	if c.Kind == directoryStore {
		return store.NewDirectory(c.Directory)
	}
	return store.NewS3(ctx, store.S3Options{
		Endpoint: c.S3.Endpoint, TLS: !c.S3.Insecure, Region: c.S3.Region, Bucket: c.S3.Bucket, Prefix: c.S3.Prefix,
		AccessKey: c.S3.AccessKey, SecretKey: string(c.S3.SecretKey), PathStyle: c.S3.PathStyle,
	})
}
