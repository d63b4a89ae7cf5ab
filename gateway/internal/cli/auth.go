package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

// login is a key that was kept for a gateway. It is never sent to another one.
type login struct {
	URL string `json:"url"`
	Key string `json:"api_key"`
	// CAFile has the authorities of its certificate; an absolute path, or empty for the machine's.
	CAFile string `json:"ca_file,omitempty"`
}

// loginFile is where a login is kept, readable by its owner alone.
func loginFile() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "covey", "login.json"), err
}

// keptLogin is the login that is kept; zero where there is none.
func keptLogin() (l login) {
	path, err := loginFile()
	if err != nil {
		return l
	}
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &l) != nil {
		return login{}
	}
	return l
}

func (l login) keep() error {
	path, err := loginFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".login-*") // Mode 0600.
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// maxKey bounds what is read as a key, bytes.
const maxKey = 256

func (a *app) authCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "auth", Short: "Keep an API key for a gateway, and see whose it is"}
	cmd.AddCommand(&cobra.Command{
		Use: "login", Short: "Read an API key from standard input, try it, and keep it for this gateway", Args: args(), Annotations: offline,
		Example: "  covey auth login --url https://covey.example < key-file",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := io.ReadAll(io.LimitReader(a.in, maxKey))
			if err != nil {
				return err
			}
			l := login{URL: a.url, Key: strings.TrimSpace(string(b)), CAFile: a.caFile}
			if l.CAFile != "" {
				if l.CAFile, err = filepath.Abs(l.CAFile); err != nil {
					return err
				}
			}
			if l.Key == "" {
				return usageError{errors.New("no API key on standard input: `covey auth login < FILE`")}
			}
			if a.c, err = dial(l.URL, l.Key, l.CAFile); err != nil {
				return err
			}
			tenant, err := a.whoami(cmd)
			if err != nil {
				return err
			}
			if err := l.keep(); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "logged in at %s as tenant %s\n", l.URL, tenant)
			return nil
		},
	}, &cobra.Command{
		Use: "status", Short: "Show the gateway and whose key is used", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			tenant, err := a.whoami(cmd)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s, tenant %s\n", a.url, tenant)
			return nil
		},
	}, &cobra.Command{
		Use: "logout", Short: "Forget the key that was kept", Args: args(), Annotations: offline,
		RunE: func(*cobra.Command, []string) error {
			path, err := loginFile()
			if err != nil {
				return err
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		},
	})
	return cmd
}

// whoami asks the gateway whose key it is.
func (a *app) whoami(cmd *cobra.Command) (string, error) {
	r, err := sandboxv1.NewTenantServiceClient(a.c.conn).GetQuota(cmd.Context(), &sandboxv1.GetQuotaRequest{})
	return r.GetTenantId(), err
}
