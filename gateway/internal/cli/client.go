package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// localKeyFile is where a local mesh keeps its administrator's key; used on its own machine when no other key is given.
const localKeyFile = "/var/lib/covey/local/api-key"

// client is a connection to a gateway.
type client struct {
	conn       *grpc.ClientConn
	sandboxes  sandboxv1.SandboxServiceClient
	keys       sandboxv1.KeyServiceClient
	operations sandboxv1.OperationsServiceClient
	snapshots  snapshotv1.SnapshotServiceClient
	hosts      schedulerv1.HostsServiceClient
	processes  guestv1.ProcessServiceClient
	files      guestv1.FileServiceClient
}

// trust are the authorities that a gateway's certificate may be from: the machine's, and those in a PEM file.
func trust(caFile string) (*x509.CertPool, error) {
	if caFile == "" {
		return nil, nil // The machine's.
	}
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("--ca-file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", caFile)
	}
	return pool, nil
}

// web is a client of the gateway's REST.
func (a *app) web() (*http.Client, error) {
	roots, err := trust(a.caFile)
	if err != nil {
		return nil, err
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	return &http.Client{Transport: tr}, nil
}

// dial connects to the gateway at rawURL (http or https) with an API key sent with every call.
func dial(rawURL, key, caFile string) (*client, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("--url: must be like http://127.0.0.1:7070, got %q", rawURL)
	}
	var creds credentials.TransportCredentials
	host := u.Host
	switch u.Scheme {
	case "http":
		creds = insecure.NewCredentials()
		if u.Port() == "" {
			host += ":80"
		}
	case "https":
		roots, err := trust(caFile)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots})
		if u.Port() == "" {
			host += ":443"
		}
	default:
		return nil, fmt.Errorf("--url: scheme must be http or https, got %q", u.Scheme)
	}
	conn, err := grpc.NewClient(host, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			var trailer metadata.MD
			err := invoke(withKey(ctx, key), method, req, reply, cc, append(opts, grpc.Trailer(&trailer))...)
			return named(err, trailer)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			st, err := open(withKey(ctx, key), desc, cc, method, opts...)
			if err != nil {
				return nil, err
			}
			return namedStream{st}, nil
		}))
	if err != nil {
		return nil, err
	}
	return &client{
		conn:      conn,
		sandboxes: sandboxv1.NewSandboxServiceClient(conn), keys: sandboxv1.NewKeyServiceClient(conn), operations: sandboxv1.NewOperationsServiceClient(conn),
		snapshots: snapshotv1.NewSnapshotServiceClient(conn), hosts: schedulerv1.NewHostsServiceClient(conn),
		processes: guestv1.NewProcessServiceClient(conn), files: guestv1.NewFileServiceClient(conn),
	}, nil
}

// requestIDKey is where the gateway tells a call's request id, in the trailer.
const requestIDKey = "covey-request-id"

// named gives an error the request id, by which the logs have it.
func named(err error, trailer metadata.MD) error {
	s, ok := status.FromError(err)
	info := infoOf(s)
	ids := trailer.Get(requestIDKey)
	if err == nil || !ok || info == nil || len(ids) == 0 || info.GetMetadata()["request_id"] != "" {
		return err
	}
	p := s.Proto()
	for i, d := range p.GetDetails() {
		if !d.MessageIs(info) {
			continue
		}
		if info.Metadata == nil {
			info.Metadata = map[string]string{}
		}
		info.Metadata["request_id"] = ids[0]
		if b, err := anypb.New(info); err == nil {
			p.Details[i] = b
		}
		break
	}
	return status.FromProto(p).Err()
}

// namedStream is a stream whose error is named.
type namedStream struct{ grpc.ClientStream }

func (s namedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return named(err, s.Trailer())
}

func withKey(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
}

// findKey returns the key given, else $COVEY_API_KEY, else the one kept for the gateway by `covey auth login`, else the local mesh's
// where the gateway is on this machine.
func findKey(url, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if key := os.Getenv("COVEY_API_KEY"); key != "" {
		return key, nil
	}
	if l := keptLogin(); l.URL == url && l.Key != "" {
		return l.Key, nil
	}
	return localKey(url, localKeyFile)
}

// localKey reads the local mesh's key. It is an administrator's, and no other machine gets it.
func localKey(url, file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || !onThisMachine(url) {
		return "", errors.New("no API key: set COVEY_API_KEY or --api-key; `make up` starts a local mesh and prints its key")
	}
	return strings.TrimSpace(string(b)), err
}

// onThisMachine tells a gateway by a name or address that never leaves the machine.
func onThisMachine(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}
