package gateway

import (
	"fmt"
	"time"

	"github.com/coveyhq/covey/services/chassis"
)

// Config is gatewayd's configuration file.
type Config struct {
	// Chassis is what all daemons have. Its listen is the one port for REST, WebSocket and native gRPC.
	Chassis chassis.Config `yaml:"chassis"`
}

// deadline is that of native unary calls which bring none. It is longer than that of the services behind, whose answer says more.
const deadline = 10 * time.Minute

// LoadConfig reads a configuration file.
func LoadConfig(path string) (Config, error) {
	c := Config{Chassis: chassis.Config{Service: "covey-gateway", Deadline: deadline}}
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
