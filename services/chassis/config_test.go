package chassis

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{Service: "covey-host", Drain: 7 * time.Second}
	err := LoadConfig(path, &c)
	return c, err
}

func TestConfigurationIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"lisen: 127.0.0.1:1":                   "lisen",
		"listen: a:1\nlisten: b:1":             "already defined",
		"listen: 127.0.0.1:1\n---\nservice: x": "more than one",
		"deadline: soon":                       "soon",
		"":                                     "",
	} {
		_, err := load(t, text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	c, err := load(t, "deadline: 3s")
	if err != nil || c.Deadline != 3*time.Second || c.Drain != 7*time.Second {
		t.Errorf("got %+v, %v: what the file leaves out must stay", c, err)
	}
}

func TestConfigurationErrorsNameTheKeyAndWhatIsLegal(t *testing.T) {
	for want, c := range map[string]Config{
		`service: must be like "covey-scheduler", got "Host"`:    {Service: "Host"},
		`listen: must be host:port, got "7000"`:                  {Service: "covey-host", Listen: "7000"},
		`tls.mode: must be off or consul, got "on"`:              {Service: "covey-host", TLS: TLSConfig{Mode: "on"}},
		`tls.mode: "consul" needs consul.address`:                {Service: "covey-host", TLS: TLSConfig{Mode: TLSConsul}},
		`log: level must be debug, info, warn or error, got "x"`: {Service: "covey-host", Log: LogConfig{Level: "x"}},
		`consul.deregister_after: must be at least 1m, got 1s`:   {Service: "covey-host", Consul: ConsulConfig{DeregisterAfter: time.Second}},
		`advertise: must be set`:                                 {Service: "covey-host", Listen: ":7000", Consul: ConsulConfig{Address: "127.0.0.1:8500"}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	c := ConsulConfig{Token: "hunter2"}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, c.Token); strings.Contains(s, "hunter2") {
		t.Error(s)
	}
}
