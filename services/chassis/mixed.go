package chassis

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// idleTime is how long a client may keep a connection that it does not use; proxies keep theirs for a minute or two.
const idleTime = 5 * time.Minute

// newWeb makes the server of HTTP/1.1 and HTTP/2 on the gRPC port.
func (d *Daemon) newWeb() *http.Server {
	own := d.opts.http
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // TLS has ended before this server.
	return &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTime, ErrorLog: d.debugLog(), Protocols: protocols,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if s, ok := c.(*securedConn); ok {
				ctx = context.WithValue(ctx, tlsKey{}, &s.state)
			}
			return ctx
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if state, ok := r.Context().Value(tlsKey{}).(*tls.ConnectionState); ok {
				r.TLS = state
			}
			if d.mixed != nil && r.ProtoMajor == 2 && isGRPC(r.Header.Get("Content-Type")) {
				d.mixed.ServeHTTP(w, r)
				return
			}
			own.ServeHTTP(w, r)
		}),
	}
}

type tlsKey struct{}

// clientKey is metadata in which mixed tells the gRPC server a client's address, host:port: the connection is the process's own.
const clientKey = "covey-client"

// fromWeb gives a call that mixed passed on its client's address. Daemons listen on TCP alone, so that no client comes over a Unix socket.
func fromWeb(ctx context.Context) context.Context {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr.Network() != "unix" {
		return ctx
	}
	client, err := netip.ParseAddrPort(strings.Join(metadata.ValueFromIncomingContext(ctx, clientKey), ","))
	if err != nil {
		return ctx
	}
	own := *p
	own.Addr = net.TCPAddrFromAddrPort(client)
	return peer.NewContext(ctx, &own)
}

// mixed passes gRPC calls that came on a connection of HTTP's to the gRPC server, in the process.
func mixed(to *branch) *httputil.ReverseProxy {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: "grpc"})
			p.Out.Host = p.In.Host
			p.Out.Header.Set("Te", "trailers") // A hop's own header, which gRPC wants.
			p.Out.Header.Set(clientKey, p.In.RemoteAddr)
		},
		Transport: &http.Transport{Protocols: protocols, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			near, far, err := socketPair()
			if err != nil {
				return nil, err
			}
			to.give(far)
			return near, nil
		}},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { // gRPC's way to say UNAVAILABLE.
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "14")
		},
	}
}

// socketPair is two ends of a connection. A net.Pipe, which keeps nothing, would not do: both sides of HTTP/2 begin by writing.
func socketPair() (_, _ net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, e := net.FileConn(f) // With a descriptor of its own.
		ends[i], err = c, errors.Join(err, e, f.Close())
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				_ = c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
