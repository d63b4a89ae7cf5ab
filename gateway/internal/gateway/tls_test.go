package gateway_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestThePublicPortSpeaksTLSForRESTGRPCAndWebSocketsAndReadsItsCertificateAgain(t *testing.T) {
	dir := t.TempDir()
	conf := gateway.TLSConfig{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	pool := meshtest.Certify(t, conf.CertFile, conf.KeyFile, 1)
	g := startWith(t, gateway.Config{TLS: conf})
	id := g.Add()
	base := strings.Replace(g.url, "http:", "https:", 1)
	web := func(pool *x509.CertPool, http2 bool) *http.Client {
		p := new(http.Protocols)
		p.SetHTTP1(!http2)
		p.SetHTTP2(http2)
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: p}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	for proto, c := range map[string]*http.Client{"HTTP/1.1": web(pool, false), "HTTP/2.0": web(pool, true)} {
		for _, path := range []string{"/v1/sandboxes/" + id, "/docs/", "/v1/sandboxes/" + id + "/logs"} {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", base+path, nil)
			req.Header.Set("X-API-Key", meshtest.AdminKey)
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			if res.Body.Close(); res.StatusCode != 200 || res.Proto != proto {
				t.Errorf("%s by %s: %d %s %s", path, proto, res.StatusCode, res.Proto, b)
			}
		}
	}
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := sandboxv1.NewSandboxServiceClient(conn).GetSandbox(as(t, meshtest.AdminKey), &sandboxv1.GetSandboxRequest{SandboxId: id}); err != nil {
		t.Error(err)
	}
	ws, _, err := websocket.Dial(t.Context(), base+"/v1/sandboxes/"+id+"/exec/stream", &websocket.DialOptions{
		HTTPClient: web(pool, false), HTTPHeader: http.Header{"X-API-Key": {meshtest.AdminKey}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ws.Close(websocket.StatusNormalClosure, "")
	if res, err := http.Get(g.url + "/healthz"); err == nil { // net/http answers plain requests to itself alone.
		res.Body.Close()
		t.Errorf("a plain request is answered: %s", res.Status)
	}

	if err := os.WriteFile(conf.CertFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // The files are looked at once a second.
		<-time.After(1100 * time.Millisecond)
		if n := g.serial(t); n != 1 {
			t.Errorf("with an illegible certificate: %d", n)
		}
	}
	meshtest.Certify(t, conf.CertFile, conf.KeyFile, 2)
	eventually(t, "the certificate is the new one", func() bool { return g.serial(t) == 2 })
}

// serial is that of the certificate shown.
func (g *running) serial(t *testing.T) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", g.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestRESTIsServedByHTTP2WithoutTLSToo(t *testing.T) {
	g := start(t)
	id := g.Add()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", g.url+"/v1/sandboxes/"+id+"/exec", strings.NewReader(`{"cmd":"echo","args":["hi"]}`))
	req.Header.Set("X-API-Key", meshtest.AdminKey)
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 || res.ProtoMajor != 2 || !strings.Contains(string(b), "hi") {
		t.Errorf("%d %s %s", res.StatusCode, res.Proto, b)
	}
}
