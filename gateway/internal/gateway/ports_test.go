package gateway_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// program serves HTTP on a port of the "sandbox".
func program(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	return port
}

// visit sends a request as a browser or program does; redirects are not followed.
func (g *running) visit(method, target string, body io.Reader, header ...string) (*http.Response, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, target, body)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if req.Header.Add(header[i], header[i+1]); header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res, string(b)
}

// token makes a token for a port.
func (g *running) token(id, port string) (token string, host string) {
	g.t.Helper()
	var made struct{ Token, URL string }
	g.post("/v1/sandboxes/"+id+"/ports/"+port+"/token", `{"ttl_sec":60}`).into(g.t, &made)
	u, err := url.Parse(made.URL)
	if err != nil || u.Query().Get("covey_token") != made.Token {
		g.t.Fatalf("URL %q, %v", made.URL, err)
	}
	return made.Token, u.Host
}

func TestAProgramOnAPortIsReachedByPathAndByHostNameAndSeesNoKey(t *testing.T) {
	g := start(t)
	port := program(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s?%s %s", r.Method, r.URL.EscapedPath(), r.URL.RawQuery, body)
		r.Header.Write(w)
	})
	id := g.Add()
	token, host := g.token(id, port)
	base := g.url + "/v1/sandboxes/" + id + "/ports/" + port
	for name, c := range map[string]struct {
		target string
		header []string
	}{
		"key, path":       {base + "/a%2Fb/?x=%zz", []string{"Authorization", "Bearer " + meshtest.AdminKey, "Connection", "X-Hop", "X-Hop", "1"}},
		"key, host":       {g.url + "/a%2Fb/?x=%zz", []string{"X-API-Key", meshtest.AdminKey, "Host", strings.ToUpper(host)}},
		"token, header":   {g.url + "/a%2Fb/?x=%zz", []string{"Host", host, "X-Covey-Port-Token", token, "Authorization", "Basic bWU6aXQ="}},
		"token, path":     {base + "/a%2Fb/?x=%zz", []string{"X-Covey-Port-Token", token, "Authorization", "Bearer cvy"}},
		"token, query":    {g.url + "/a%2Fb/?x=%zz&covey_token=" + token, []string{"Host", host, "Referer", "http://x/?covey_token=" + token}},
		"token, cookie":   {g.url + "/a%2Fb/?x=%zz", []string{"Host", host, "Cookie", "mine=1; covey_port_token=" + token}},
		"token, and key":  {base + "/a%2Fb/?x=%zz", []string{"X-Covey-Port-Token", token, "Authorization", "Bearer " + meshtest.AdminKey}},
		"key as protocol": {base + "/a%2Fb/?x=%zz", []string{"Sec-WebSocket-Protocol", "chat, covey.key." + meshtest.AdminKey}},
	} {
		t.Run(name, func(t *testing.T) {
			res, body := g.visit("POST", c.target, strings.NewReader("in"), c.header...)
			if res.StatusCode != 200 || !strings.HasPrefix(body, "POST /a%2Fb/?x=%zz in") {
				t.Fatalf("%d %s", res.StatusCode, body)
			}
			if strings.Contains(body, "cvy_") || strings.Contains(body, token) || strings.Contains(body, "X-Hop") || strings.Contains(body, "Bearer") {
				t.Errorf("the program saw %s", body)
			}
			for own, want := range map[string]string{"Basic": "Authorization: Basic bWU6aXQ=", "mine=1": "Cookie: mine=1", "chat,": "Sec-Websocket-Protocol: chat"} {
				if strings.Contains(strings.Join(c.header, " "), own) && !strings.Contains(body, want) {
					t.Errorf("what is the program's own did not come: %s", body)
				}
			}
		})
	}
}

func TestPortsAdmitNobodyElse(t *testing.T) {
	g := start(t)
	port := program(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "inside") })
	id, other := g.Add(), g.Add()
	token, host := g.token(id, port)
	base := g.url + "/v1/sandboxes/" + id + "/ports/" + port + "/"
	for name, c := range map[string]struct {
		target string
		header []string
		status int
		reason string
	}{
		"nothing":         {base, nil, 401, "MISSING_API_KEY"},
		"by host":         {g.url + "/healthz", []string{"Host", host}, 401, "MISSING_API_KEY"},
		"read key":        {base, []string{"X-API-Key", meshtest.ReadKey}, 403, "MISSING_SCOPE"},
		"foreign key":     {base, []string{"X-API-Key", meshtest.OtherKey}, 404, "SANDBOX_NOT_FOUND"},
		"other sandbox":   {strings.Replace(base, id, other, 1), []string{"X-Covey-Port-Token", token}, 401, "INVALID_PORT_TOKEN"},
		"forged":          {base + "?covey_token=" + token + "x", nil, 401, "INVALID_PORT_TOKEN"},
		"token for API":   {g.url + "/v1/sandboxes", []string{"Authorization", "Bearer " + token}, 401, "INVALID_API_KEY"},
		"no port":         {g.url + "/v1/sandboxes/" + id + "/ports/0/", []string{"X-API-Key", meshtest.AdminKey}, 400, "INVALID_FIELD"},
		"nothing listens": {g.url + "/v1/sandboxes/" + id + "/ports/1/", []string{"X-API-Key", meshtest.AdminKey}, 502, "PORT_CLOSED"},
	} {
		res, body := g.visit("GET", c.target, nil, c.header...)
		if p := (answer{res.StatusCode, res.Header, []byte(body)}).problem(t); res.StatusCode != c.status || p.Reason != c.reason {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
}

func TestABrowserKeepsATokenInACookieAndDropsItFromTheURL(t *testing.T) {
	g := start(t)
	port := program(t, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "own", Value: "1", Domain: "covey.localhost"})
		http.SetCookie(w, &http.Cookie{Name: "covey_port_token", Value: "stolen"})
		http.Redirect(w, r, "/next", http.StatusSeeOther)
	})
	id := g.Add()
	token, host := g.token(id, port)
	res, _ := g.visit("GET", g.url+"//evil.example/?a=1&covey_token="+token, nil, "Host", host, "Accept", "text/html")
	if to := res.Header.Get("Location"); res.StatusCode != 302 || to != "/evil.example/?a=1" {
		t.Errorf("%d to %q", res.StatusCode, to)
	}
	c := res.Cookies()
	if len(c) != 1 || c[0].Value != token || !c[0].HttpOnly || c[0].Path != "/" || c[0].Domain != "" {
		t.Fatalf("cookies %v", c)
	}
	prefix := "/v1/sandboxes/" + id + "/ports/" + port
	res, _ = g.visit("GET", g.url+prefix+"/x", nil, "Cookie", c[0].Name+"="+c[0].Value)
	if got := res.Header.Values("Set-Cookie"); res.Header.Get("Location") != prefix+"/next" || len(got) != 1 || got[0] != "own=1; Path="+prefix+"/" {
		t.Errorf("to %q, cookies %q", res.Header.Get("Location"), got)
	}
	res, _ = g.visit("GET", g.url+prefix+"?q=1", nil, "Cookie", c[0].Name+"="+c[0].Value)
	if res.StatusCode != 308 || res.Header.Get("Location") != prefix+"/?q=1" {
		t.Errorf("without a slash: %d to %q", res.StatusCode, res.Header.Get("Location"))
	}
}

func TestPortsCarryWebSocketsAndStreamsBothWays(t *testing.T) {
	g := start(t)
	port := program(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err != nil {
				return
			}
			kind, b, err := ws.Read(r.Context())
			if err == nil {
				ws.Write(r.Context(), kind, append([]byte("echo "), b...))
				ws.Close(websocket.StatusNormalClosure, "")
			}
			return
		}
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			rc.Flush()
			if err != nil {
				return
			}
		}
	})
	id := g.Add()
	token, host := g.token(id, port)
	ws, _, err := websocket.Dial(t.Context(), g.url+"/ws", &websocket.DialOptions{Host: host, HTTPHeader: http.Header{"X-Covey-Port-Token": {token}}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := ws.Read(t.Context()); err != nil || string(b) != "echo hello" {
		t.Fatalf("%q, %v", b, err)
	}

	in, out := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), "POST", g.url+"/v1/sandboxes/"+id+"/ports/"+port+"/", in)
	req.Header.Set("X-Covey-Port-Token", token)
	go out.Write([]byte("ping"))
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	buf := make([]byte, 4)
	for _, word := range []string{"ping", "pong"} { // Each comes back before the next is sent.
		if word == "pong" {
			go out.Write([]byte(word))
		}
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != word {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	out.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
}

func TestARequestToAPortWakesAPausedSandboxThatMay(t *testing.T) {
	g := start(t)
	port := program(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "awake") })
	var sb struct{ ID string }
	for auto, want := range map[bool]int{true: 200, false: 409} {
		g.post("/v1/sandboxes", fmt.Sprintf(`{"auto_resume":%v}`, auto)).into(t, &sb)
		g.post("/v1/sandboxes/"+sb.ID+"/pause", "{}")
		res, body := g.visit("GET", g.url+"/v1/sandboxes/"+sb.ID+"/ports/"+port+"/", nil, "X-API-Key", meshtest.AdminKey)
		if res.StatusCode != want {
			t.Errorf("auto_resume %v: %d %s", auto, res.StatusCode, body)
		}
	}
}

// TestAConnectionIsNotKeptAfterABodyThatNobodyRead: the next request on it would be lost.
func TestAConnectionIsNotKeptAfterABodyThatNobodyRead(t *testing.T) {
	g := start(t)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for range 10 {
		for path, want := range map[string]int{"/ports/80/x": 404, "/processes/p/signal": 404} {
			req, err := http.NewRequestWithContext(t.Context(), "POST", g.url+"/v1/sandboxes/sb_no"+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-API-Key", meshtest.AdminKey)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s: %d", path, res.StatusCode)
			}
		}
	}
}
