package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres"
)

// Config is sandboxd's configuration file.
type Config struct {
	Chassis  chassis.Config  `yaml:"chassis"`
	Database postgres.Config `yaml:"database"`
	// Images are the stock images that every host has. Default: base and tiny, as the guest's recipes make them.
	Images []sandbox.Image `yaml:"images"`
	// BootstrapAPIKeyFile holds a key of tenant "default" with all scopes. It is made, readable by its owner alone, where
	// it is missing. Empty means no such key.
	BootstrapAPIKeyFile string `yaml:"bootstrap_api_key_file"`
	// Quota is what a tenant may have at once unless SetQuota gave it limits of its own. 0, the default, means no bound.
	Quota sandbox.Amounts `yaml:"quota"`
	// Timing is for tests; the defaults are right.
	Timing sandbox.Timing `yaml:"timing"`
}

// defaultImages are those that guest-build makes, with the sizes of their filesystems.
var defaultImages = []sandbox.Image{{Name: "base", DiskMB: 8192}, {Name: "tiny", DiskMB: 512}}

var imageName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func loadConfig(path string) (Config, error) {
	// Some calls wait for a sandbox's start, whose own limit is timing.work.
	c := Config{Chassis: chassis.Config{Service: caller.Sandbox, Deadline: 5 * time.Minute}, Images: slices.Clone(defaultImages)}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if err := c.Chassis.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("chassis: %w", err))
	}
	if c.Database.DSN == "" {
		errs = append(errs, errors.New("database.dsn: must be a PostgreSQL connection string, is empty"))
	}
	if c.Database.MaxConns < 0 {
		errs = append(errs, fmt.Errorf("database.max_conns: must be positive, got %d", c.Database.MaxConns))
	}
	if c.Database.KeepRevokedKeys < 0 {
		errs = append(errs, fmt.Errorf("database.keep_revoked_keys: must be positive, got %s", c.Database.KeepRevokedKeys))
	}
	if len(c.Images) == 0 {
		errs = append(errs, errors.New("images: must name at least one image, or be left out for the defaults"))
	}
	if q := c.Quota; min(q.Sandboxes, q.VCPUs, q.MemoryMB, q.Snapshots, q.SnapshotBytes) < 0 {
		errs = append(errs, fmt.Errorf("quota: must not be negative, got %+v; 0 means no bound", q))
	}
	for i, img := range c.Images {
		if !imageName.MatchString(img.Name) || img.DiskMB == 0 {
			errs = append(errs, fmt.Errorf("images[%d]: must have a name of 1 to 63 characters of [a-z0-9._-] and a positive disk_mb, got %q and %d", i, img.Name, img.DiskMB))
		}
	}
	return errors.Join(errs...)
}
