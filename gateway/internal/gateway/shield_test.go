package gateway_test

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/gateway/internal/gateway"
	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// hostile is a program that says of its origin what it must not.
func hostile(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html")
	h.Set("Content-Security-Policy", "default-src * 'unsafe-inline'")
	h.Set("Clear-Site-Data", `"*"`)
	h.Set("Strict-Transport-Security", "max-age=31536000")
	h.Set("Service-Worker-Allowed", "/")
	h.Add("Set-Cookie", "wide=1; Path=/; Domain=127.0.0.1")
	h.Add("Set-Cookie", "not legible=1; Path=/")
	h.Add("Set-Cookie", "__Host-x=1; Path=/; Secure")
	io.WriteString(w, `<!doctype html><body><div id=out></div><script>
const out = [], say = s => { out.push(s); document.getElementById('out').textContent = out.join(' ') };
try { localStorage.x = 1; say('STORAGE') } catch (e) { say('no-storage') }
try { document.cookie = 'x=1; path=/'; say(document.cookie ? 'COOKIE' : 'no-cookie') } catch (e) { say('no-cookie') }
fetch('/openapi.json').then(r => r.text()).then(t => say('FETCHED'), e => say('not-fetched'));
const f = document.createElement('iframe'); f.src = '/docs/';
f.onload = () => { try { say('FRAME ' + f.contentDocument.title.length) } catch (e) { say('no-frame') } };
document.body.append(f);
say('origin=' + self.origin);
</script>`)
}

func TestAnswersByPathAreSandboxedAndSayNothingOfTheGatewaysOrigin(t *testing.T) {
	g := start(t)
	port := program(t, hostile)
	id := g.Add()
	prefix := "/v1/sandboxes/" + id + "/ports/" + port
	res, _ := g.visit("GET", g.url+prefix+"/", nil, "X-API-Key", meshtest.AdminKey)
	policies := res.Header.Values("Content-Security-Policy")
	if len(policies) != 2 || !strings.HasPrefix(policies[1], "sandbox ") || strings.Contains(policies[1], "allow-same-origin") || res.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("policies %q", policies)
	}
	for _, name := range []string{"Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed"} {
		if v := res.Header.Get(name); v != "" {
			t.Errorf("%s: %s", name, v)
		}
	}
	for _, line := range res.Header.Values("Set-Cookie") {
		if !strings.Contains(line, "; Path="+prefix+"/") || strings.Contains(line, "Domain") || strings.Contains(line, "legible") {
			t.Errorf("cookie %s", line)
		}
	}
	_, host := g.token(id, port)
	res, _ = g.visit("GET", g.url+"/", nil, "Host", host, "X-API-Key", meshtest.AdminKey)
	if res.Header.Get("Content-Security-Policy") != "default-src * 'unsafe-inline'" || res.Header.Get("Clear-Site-Data") == "" {
		t.Errorf("by host name a page is its own: %v", res.Header)
	}
}

func TestBrowsersThatComeByPathAreSentToThePortsHostName(t *testing.T) {
	g := startWith(t, gateway.Config{Ports: gateway.PortsConfig{Domain: "ports.example.com"}})
	port := program(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "inside") })
	id := g.Add()
	token, host := g.token(id, port)
	path := g.url + "/v1/sandboxes/" + id + "/ports/" + port
	if !strings.Contains(host, ".ports.example.com:") {
		t.Fatalf("host %q", host)
	}
	res, _ := g.visit("GET", path+"/a%2Fb?x=1&covey_token="+token, nil, "Accept", "text/html", "Host", "api.example.com:"+strings.Split(host, ":")[1])
	if to := res.Header.Get("Location"); res.StatusCode != 302 || to != "http://"+host+"/a%2Fb?x=1&covey_token="+token || len(res.Cookies()) > 0 {
		t.Errorf("%d to %q, cookies %v", res.StatusCode, to, res.Cookies())
	}
	res, body := g.visit("GET", path+"/?covey_token="+token, nil)
	if res.StatusCode != 200 || body != "inside" || len(res.Cookies()) > 0 {
		t.Errorf("by token: %d %s, cookies %v", res.StatusCode, body, res.Cookies())
	}
	if res, _ := g.visit("GET", path+"/", nil, "Cookie", "covey_port_token="+token); res.StatusCode != 401 {
		t.Errorf("by cookie: %d", res.StatusCode)
	}
	if res, _ := g.visit("GET", g.url+"/", nil, "Host", host, "Cookie", "covey_port_token="+token); res.StatusCode != 200 {
		t.Errorf("by cookie and host name: %d", res.StatusCode)
	}
}

func TestTheGatewaysOwnPagesCannotBeFramedOrScripted(t *testing.T) {
	g := start(t)
	docs := g.do("GET", "/docs/", nil, "Authorization", "").header
	for name, want := range map[string]string{
		"Content-Security-Policy": "script-src 'self' 'sha256-", "X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin", "X-Content-Type-Options": "nosniff",
	} {
		if !strings.Contains(docs.Get(name), want) {
			t.Errorf("/docs/: %s is %q", name, docs.Get(name))
		}
	}
	api := g.do("GET", "/v1/sandboxes", nil).header
	if !strings.HasPrefix(api.Get("Content-Security-Policy"), "default-src 'none'") || api.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("an answer has %v", api)
	}
}

func TestMetricsOnThePublicPortAreForAdministrators(t *testing.T) {
	g := start(t)
	for key, want := range map[string]int{"": 401, "Bearer " + meshtest.ReadKey: 403, "Bearer " + meshtest.AdminKey: 200} {
		if a := g.do("GET", "/metrics", nil, "Authorization", key); a.status != want {
			t.Errorf("with %q: %d, want %d", key, a.status, want)
		}
	}
	open := startWith(t, gateway.Config{OpenMetrics: true})
	if a := open.do("GET", "/metrics", nil, "Authorization", ""); a.status != 200 || !strings.Contains(string(a.body), "go_goroutines") {
		t.Errorf("open: %d", a.status)
	}
}

// shown is what a page is in a real Chromium, which finds the gateway as api.example.com too.
func (g *running) shown(target string) string {
	g.t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		g.t.Skip("there is no Chromium: with Debian's package chromium installed, pages are shown in it")
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir="+g.t.(*testing.T).TempDir(),
		"--virtual-time-budget=8000", "--host-resolver-rules=MAP api.example.com 127.0.0.1", "--dump-dom", target)
	cmd.Dir = g.t.(*testing.T).TempDir()
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("chromium: %v", err)
	}
	return string(out)
}

func TestAHostilePageInABrowserReachesNothingOfTheGateway(t *testing.T) {
	g := start(t)
	port := program(t, hostile)
	id := g.Add()
	token, _ := g.token(id, port)
	// Not the loopback's name, from which browsers are sent to the port's own.
	page, _, _ := strings.Cut(g.shown(strings.Replace(g.url, "127.0.0.1", "api.example.com", 1)+"/v1/sandboxes/"+id+"/ports/"+port+"/?covey_token="+token), "<script>")
	for want, bad := range map[string]string{"no-storage": "STORAGE", "no-cookie": "COOKIE", "not-fetched": "FETCHED", "origin=null": "FRAME"} {
		if !strings.Contains(page, want) || strings.Contains(page, bad) {
			t.Errorf("the page says %s, not %q", page, want)
		}
	}
}

func TestTheDocumentationRunsUnderItsPolicy(t *testing.T) {
	g := start(t)
	page := strings.ReplaceAll(g.shown(g.url+"/docs/"), "\u200b", "")
	if !strings.Contains(page, "/v1/sandboxes/{sandbox_id}") || strings.Contains(page, "Failed to load") {
		t.Errorf("the page is shown as %.2000s", page)
	}
}
