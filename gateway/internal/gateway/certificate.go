package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSConfig is what the public port shows who connects. Without it the port is plain, for a local mesh or behind what ends TLS.
type TLSConfig struct {
	// CertFile has the certificate and those that lead to its authority, KeyFile its key; PEM. They are read again when they change.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

func (c TLSConfig) validate() error {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("cert_file and key_file: must both be set, or neither for a port without TLS")
	}
	return nil
}

// lookAgain is how often the files are looked at, at most: a change is seen at the first connection after it.
const lookAgain = time.Second

// certificate is what two files have.
//
// Chosen: looking at the files when somebody connects. Rejected: watching them, which misses files that are replaced through symbolic links, as
// secrets of orchestrators are; and a signal, which somebody has to send.
type certificate struct {
	conf TLSConfig
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex // guards the rest
	pair   *tls.Certificate
	seen   [2]fileState
	looked time.Time
}

// fileState tells a file that was changed from one that was not.
type fileState struct {
	modified time.Time
	size     int64
}

// newCertificate reads the files.
func newCertificate(c TLSConfig, log *slog.Logger) (*certificate, error) {
	cert := &certificate{conf: c, log: log, now: time.Now}
	if err := cert.read(); err != nil {
		return nil, err
	}
	return cert, nil
}

// get is a tls.Config's GetCertificate. What cannot be read, like a key without its certificate amid a change, leaves in force what there was.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= lookAgain {
		c.looked = now
		if seen, err := c.look(); err != nil || seen != c.seen {
			if err := c.read(); err != nil {
				c.log.Error("the TLS certificate cannot be read again; the one before stays", "error", err)
			} else {
				c.log.Info("the TLS certificate was read again", "cert_file", c.conf.CertFile)
			}
		}
	}
	return c.pair, nil
}

func (c *certificate) look() (seen [2]fileState, err error) {
	for i, path := range []string{c.conf.CertFile, c.conf.KeyFile} {
		st, e := os.Stat(path)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		seen[i] = fileState{st.ModTime(), st.Size()}
	}
	return seen, err
}

// read reads the files. mu is held, or nobody else has c yet.
func (c *certificate) read() error {
	seen, err := c.look() // Before the files are read: what changes in between is read again.
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.conf.CertFile, c.conf.KeyFile)
	if err != nil {
		return fmt.Errorf("tls: cert_file %s, key_file %s: %w", c.conf.CertFile, c.conf.KeyFile, err)
	}
	c.pair, c.seen = &pair, seen
	return nil
}
