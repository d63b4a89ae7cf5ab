package chassis

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
)

// overHTTP2 is a client of HTTP/2 without TLS.
func overHTTP2(t *testing.T) *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestHTTP2IsServedBesideGRPCAndOnOneConnectionWithIt(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.URL.Path, " ", r.Proto) })
	var from net.Addr
	d, _ := start(t, Config{}, &fakeHost{ping: func(ctx context.Context) error {
		p, _ := peer.FromContext(ctx)
		from = p.Addr
		return nil
	}}, WithHTTP(hello))
	c := overHTTP2(t)
	reused := 0
	ctx := httptrace.WithClientTrace(within(t), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if i.Reused {
			reused++
		}
	}})
	ask := func(method, path, kind string, body []byte) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+d.Addr()+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Te", "trailers")
		req.Header.Set(clientKey, "192.0.2.1:1")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}
	for range 2 {
		if _, body := ask("GET", "/x", "", nil); body != "hello /x HTTP/2.0" {
			t.Errorf("got %q", body)
		}
		// A proxy may send calls of both kinds on one connection.
		res, _ := ask("POST", hostv1.HostService_PingSandbox_FullMethodName, "application/grpc", make([]byte, 5))
		if status := res.Trailer.Get("Grpc-Status") + res.Header.Get("Grpc-Status"); status != "0" {
			t.Errorf("gRPC on the same connection: %s %v %v", status, res.Header, res.Trailer)
		}
		if a, ok := from.(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
			t.Errorf("the gRPC server takes the client for %v", from)
		}
	}
	if reused != 3 {
		t.Errorf("%d of 4 requests used the connection again", reused)
	}
	if _, err := client(t, onlyCalls(t, Config{}), d).PingSandbox(metadata.AppendToOutgoingContext(within(t), clientKey, "192.0.2.1:1"), &hostv1.PingSandboxRequest{}); err != nil {
		t.Error(err)
	}
	if a, ok := from.(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		t.Errorf("the gRPC server takes a native client for %v", from)
	}
}

// TestAConnectionIsToldByItsFirstRequestHoweverItComes cuts the bytes of a connection at every place.
func TestAConnectionIsToldByItsFirstRequestHoweverItComes(t *testing.T) {
	settings, ack := "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x00\x04\x01\x00\x00\x00\x00"
	ping := "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
	request := func(kind string) string { // POST, with a content type as a literal that is not indexed.
		block := "\x83\x0f\x10" + string(rune(len(kind))) + kind
		return "\x00\x00" + string(rune(len(block))) + "\x01\x05\x00\x00\x00\x01" + block
	}
	for name, c := range map[string]struct {
		sent, want string
		grpc       bool
	}{
		"gRPC":                {settings + ack + request("application/grpc+proto"), settings + request("application/grpc+proto"), true},
		"acknowledged later":  {settings + request("application/grpc") + ping + ack + ping + ack, settings + request("application/grpc") + ping + ping + ack, true},
		"JSON":                {settings + request("application/json") + ack + "x", settings + request("application/json") + "x", false},
		"gRPC for browsers":   {settings + request("application/grpc-web") + ack, settings + request("application/grpc-web"), false},
		"never acknowledged":  {settings + ping + request("text/html") + ping, settings + ping + request("text/html") + ping, false},
		"pings before it all": {settings + ping + ack + ping + request("application/grpc;x=y"), settings + ping + ping + request("application/grpc;x=y"), true},
	} {
		for cut := range len(c.sent) {
			near, far := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				io.ReadFull(near, make([]byte, frameHeader)) // Our settings.
				io.WriteString(near, c.sent[:cut])
				io.WriteString(near, c.sent[cut:])
				near.Close()
			}()
			own, grpc, err := sniff(far)
			if err != nil || grpc != c.grpc {
				t.Fatalf("%s, cut at %d: %v, %v", name, cut, grpc, err)
			}
			got, err := io.ReadAll(own)
			if err != nil || string(got) != preface+c.want {
				t.Fatalf("%s, cut at %d: %v\n%q\n%q", name, cut, err, got, preface+c.want)
			}
			<-done
		}
	}
}
