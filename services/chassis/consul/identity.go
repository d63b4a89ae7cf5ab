package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/coveyhq/covey/services/chassis/caller"
)

// Identity is what a daemon proves who it is with, and knows others by: a certificate for its service from Consul's own authority, and that authority's
// roots. Consul renews the certificate and rotates the roots; both are followed.
//
// The name in a certificate is a URI, spiffe://<trust domain>/ns/<namespace>/dc/<datacenter>/svc/<service>, and no host name: what counts is which
// service it is, not where it runs. A host agent's is that of its id in Consul, covey-host-<host id>: to callers it is covey-host, and to whom it calls the
// agent of that host and no other.
//
// Rejected for that: a further name in a certificate for covey-host, because what Consul's agent signs has the one name that it was asked for; and one that is asked for
// by service has the advantage that Consul's own rules say which host may have it.
type Identity struct {
	who     caller.Caller
	cancel  context.CancelFunc
	follows sync.WaitGroup
	ready   chan struct{} // closed when both are known

	mu     sync.Mutex // guards the rest
	leaf   *tls.Certificate
	roots  *x509.CertPool
	domain string
}

// Identity begins to follow the identity of a daemon, until Close.
func (c *Client) Identity(who caller.Caller) *Identity {
	ctx, cancel := context.WithCancel(context.Background())
	i := &Identity{who: who, cancel: cancel, ready: make(chan struct{})}
	i.follows.Go(func() { c.block(ctx, "roots of the authority", i.takeRoots(c)) })
	i.follows.Go(func() { c.block(ctx, "certificate of "+who.Identity(), i.takeLeaf(c)) })
	return i
}

// Close ends the following.
func (i *Identity) Close() {
	i.cancel()
	i.follows.Wait()
}

func (i *Identity) takeRoots(c *Client) func(*api.QueryOptions) (*api.QueryMeta, error) {
	return func(q *api.QueryOptions) (*api.QueryMeta, error) {
		list, meta, err := c.api.Agent().ConnectCARoots(q)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		for _, r := range list.Roots {
			if !pool.AppendCertsFromPEM([]byte(r.RootCertPEM)) {
				return nil, fmt.Errorf("root %s is not a certificate", r.ID)
			}
		}
		if len(list.Roots) == 0 {
			return nil, errors.New("the authority has no roots yet")
		}
		i.take(func() { i.roots, i.domain = pool, list.TrustDomain })
		return meta, nil
	}
}

func (i *Identity) takeLeaf(c *Client) func(*api.QueryOptions) (*api.QueryMeta, error) {
	return func(q *api.QueryOptions) (*api.QueryMeta, error) {
		leaf, meta, err := c.api.Agent().ConnectCALeaf(i.who.Identity(), q)
		if err != nil {
			return nil, err
		}
		cert, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
		if err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", i.who.Identity(), err)
		}
		i.take(func() { i.leaf = &cert })
		return meta, nil
	}
}

// take stores something new.
func (i *Identity) take(store func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	complete := i.leaf != nil && i.roots != nil
	store()
	if !complete && i.leaf != nil && i.roots != nil {
		close(i.ready)
	}
}

// Wait waits until the identity is known.
func (i *Identity) Wait(ctx context.Context) error {
	select {
	case <-i.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no identity from Consul yet: %w", ctx.Err())
	}
}

// wait waits until the identity is known and returns it.
func (i *Identity) wait(ctx context.Context) (*tls.Certificate, *x509.CertPool, error) {
	if err := i.Wait(ctx); err != nil {
		return nil, nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.leaf, i.roots, nil
}

// Server is the TLS of a server. It checks the certificates that clients send, but takes clients without: Consul's health checks have none. Who may call what
// is for Caller.
func (i *Identity) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			leaf, roots, err := i.wait(hello.Context())
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*leaf},
				ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots,
				// A resumed session would keep an identity alive that is no longer good.
				SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// Client is the TLS of a connection to a service: the other end must be that service. Wait must have returned before a handshake.
func (i *Identity) Client(service string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		// The standard check is of host names, which these certificates do not have; VerifyConnection makes the right one.
		InsecureSkipVerify: true,
		GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			leaf, _, err := i.wait(r.Context())
			return leaf, err
		},
		VerifyConnection: func(s tls.ConnectionState) error { return i.verify(s, service) },
	}
}

// verify checks that a server's certificate is the authority's and for a service.
func (i *Identity) verify(s tls.ConnectionState, service string) error {
	select {
	case <-i.ready:
	default:
		return errors.New("no identity from Consul yet")
	}
	i.mu.Lock()
	roots := i.roots
	i.mu.Unlock()
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	leaf := s.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	got, err := i.name(leaf)
	if err != nil {
		return err
	}
	if got.Service != service {
		return fmt.Errorf("the server is %s, not %s", got.Identity(), service)
	}
	return nil
}

// Caller is the daemon at the other end of a server's connection; an error if it has shown no certificate.
func (i *Identity) Caller(s tls.ConnectionState) (caller.Caller, error) {
	if len(s.VerifiedChains) == 0 {
		return caller.Caller{}, errors.New("the caller has no certificate of the mesh")
	}
	return i.name(s.VerifiedChains[0][0])
}

// name reads from a certificate that was verified whose it is.
func (i *Identity) name(c *x509.Certificate) (caller.Caller, error) {
	i.mu.Lock()
	domain := i.domain
	i.mu.Unlock()
	if len(c.URIs) != 1 {
		return caller.Caller{}, fmt.Errorf("a certificate must name one identity, has %d", len(c.URIs))
	}
	service, ok := parseIdentity(c.URIs[0], domain)
	if !ok {
		return caller.Caller{}, fmt.Errorf("%s is no service of the mesh %s", c.URIs[0], domain)
	}
	return caller.Named(service), nil
}

func parseIdentity(u *url.URL, domain string) (service string, ok bool) {
	part := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "spiffe" || !strings.EqualFold(u.Host, domain) || len(part) < 2 || part[len(part)-2] != "svc" {
		return "", false
	}
	return part[len(part)-1], true
}
