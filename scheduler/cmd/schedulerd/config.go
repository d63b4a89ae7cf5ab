package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/services/chassis"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// Config is schedulerd's configuration file.
type Config struct {
	Chassis chassis.Config `yaml:"chassis"`
	// Timing is for tests; the defaults are right.
	Timing book.Timing `yaml:"timing"`
}

func loadConfig(path string) (Config, error) {
	c := Config{Chassis: chassis.Config{Service: caller.Scheduler}}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if err := c.Chassis.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("chassis: %w", err))
	}
	for key, d := range map[string]time.Duration{
		"silence": c.Timing.Silence, "forget": c.Timing.Forget, "reservation": c.Timing.Reservation, "warm_up": c.Timing.WarmUp,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("timing.%s: must be positive, got %s", key, d))
		}
	}
	return errors.Join(errs...)
}
