package chassis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coveyhq/covey/services/chassis"
)

type programConfig struct {
	Color string `yaml:"color"`
}

var errServe = errors.New("served all there was")

// program says on out what it did.
func program(out io.Writer) chassis.Program[programConfig] {
	say := func(what string) func(context.Context, programConfig, io.Writer) error {
		return func(_ context.Context, c programConfig, out io.Writer) error {
			_, err := fmt.Fprintf(out, "%s %q", what, c.Color)
			return err
		}
	}
	return chassis.Program[programConfig]{
		Name: "somed",
		Load: func(path string) (c programConfig, err error) { return c, chassis.LoadConfig(path, &c) },
		Serve: func(ctx context.Context, c programConfig) error {
			return errors.Join(say("serve")(ctx, c, out), errServe)
		},
		Commands: map[string]chassis.Command[programConfig]{"reap": {Run: say("reap")}, "doctor": {Run: say("doctor"), Bare: true}},
	}
}

func TestAProgramDoesWhatItsArgumentsSay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "somed.yaml")
	if err := os.WriteFile(path, []byte("color: red\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const usage = "usage: somed [doctor|reap] --config FILE"
	for _, x := range []struct{ args, want, wrong string }{
		{"--config " + path, `serve "red"`, errServe.Error()},
		{"reap --config " + path, `reap "red"`, ""},
		{"doctor --config " + path, `doctor "red"`, ""},
		{"doctor", `doctor ""`, ""},
		{"reap", "", usage},
		{"", "", usage},
		{"--config " + path + " more", "", usage},
		{"unknown --config " + path, "", usage},
		{"--config /not/there", "", "/not/there"},
		{"-h", usage + "\n", ""},
		{"--unknown", "", "flag provided but not defined"},
	} {
		var out bytes.Buffer
		err := program(&out).Run(t.Context(), strings.Fields(x.args), &out)
		if out.String() != x.want || (err == nil) != (x.wrong == "") || err != nil && !strings.Contains(err.Error(), x.wrong) {
			t.Errorf("%q: %q, %v; want %q, %q", x.args, out.String(), err, x.want, x.wrong)
		}
	}
}
