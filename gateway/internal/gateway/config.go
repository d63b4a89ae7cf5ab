package gateway

import (
	"fmt"

	"github.com/coveyhq/covey/services/chassis"
)

// Config is gatewayd's configuration file.
type Config struct {
	// Chassis is what all daemons have. Its listen is the one port for REST, WebSocket and native gRPC.
	Chassis chassis.Config `yaml:"chassis"`
}

// LoadConfig reads a configuration file.
func LoadConfig(path string) (Config, error) {
	c := Config{Chassis: chassis.Config{Service: "covey-gateway"}}
	err := chassis.LoadConfig(path, &c)
	return c, err
}

// Validate says all that is wrong with the configuration.
func (c *Config) Validate() error {
	if err := c.Chassis.Validate(); err != nil {
		return fmt.Errorf("chassis: %w", err)
	}
	return nil
}
