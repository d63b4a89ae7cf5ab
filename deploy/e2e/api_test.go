package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// caller calls the API over REST.
type caller struct {
	t   *testing.T
	ctx context.Context
}

func api(t *testing.T) caller { return caller{t, start(t)} }

// open sends a request with the administrator's key, unless a header says otherwise, and returns the answer with its body still to be read.
func (c caller) open(method, path string, body io.Reader, header ...string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.ctx, method, s.m.URL+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		switch req.Header.Del(header[i]); {
		case header[i] == "Host":
			req.Host = header[i+1]
		case header[i+1] != "":
			req.Header.Set(header[i], header[i+1])
		}
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	c.t.Cleanup(func() { res.Body.Close() })
	return res
}

// call sends a request and reads its answer.
func (c caller) call(method, path, body string, header ...string) (int, string) {
	c.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	res := c.open(method, path, r, header...)
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, string(b)
}

// ok is a call that must succeed; its answer is read into a generic value.
func (c caller) ok(method, path, body string) map[string]any {
	c.t.Helper()
	status, answer := c.call(method, path, body)
	var v map[string]any
	if err := json.Unmarshal([]byte(answer), &v); err != nil || status != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return v
}

// make makes a sandbox that is deleted at the test's end, and returns the path of it.
func (c caller) make(body string) (id, path string) {
	c.t.Helper()
	id = c.ok("POST", "/v1/sandboxes", body)["id"].(string)
	remove(c.t, id)
	return id, "/v1/sandboxes/" + id
}

func TestWrongRequestsAreAnsweredInOneShape(t *testing.T) {
	c := api(t)
	const sb = "/v1/sandboxes/sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	for name, w := range map[string]struct {
		method, path, body string
		header             []string
		status             int
		reason             string
	}{
		"no key":          {"GET", "/v1/sandboxes", "", []string{"Authorization", ""}, 401, "MISSING_API_KEY"},
		"wrong key":       {"GET", "/v1/sandboxes", "", []string{"Authorization", "Bearer cvy_nobody"}, 401, "INVALID_API_KEY"},
		"no route":        {"GET", "/v1/nothing", "", nil, 404, "NO_SUCH_ROUTE"},
		"no sandbox":      {"GET", sb, "", nil, 404, "SANDBOX_NOT_FOUND"},
		"no such method":  {"PUT", sb, "", nil, 405, "METHOD_NOT_ALLOWED"},
		"cut JSON":        {"POST", "/v1/sandboxes", "{", nil, 400, "INVALID_JSON"},
		"unknown field":   {"POST", "/v1/sandboxes", `{"memory":1}`, nil, 400, "INVALID_FIELD"},
		"illegal value":   {"POST", "/v1/sandboxes", `{"template":"tiny","vcpus":1000}`, nil, 400, "INVALID_FIELD"},
		"no JSON":         {"POST", "/v1/sandboxes", "a=b", []string{"Content-Type", "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"},
		"no form":         {"POST", sb + "/files/write", "x", nil, 415, "UNSUPPORTED_MEDIA_TYPE"},
		"too large":       {"POST", "/v1/sandboxes", `{"template":"` + strings.Repeat("x", 9<<20) + `"}`, nil, 413, "BODY_TOO_LARGE"},
		"no WebSocket":    {"GET", sb + "/exec/stream", "", nil, 426, "UPGRADE_REQUIRED"},
		"port of nobody":  {"GET", sb + "/ports/80/", "", nil, 404, "SANDBOX_NOT_FOUND"},
		"no port":         {"GET", sb + "/ports/x/", "", nil, 400, "INVALID_FIELD"},
		"token too long":  {"POST", sb + "/ports/80/token", `{"ttl_sec":100000}`, nil, 400, "INVALID_FIELD"},
		"no room for it":  {"POST", "/v1/sandboxes", `{"template":"tiny","memory_mb":16384}`, nil, 429, "NO_CAPACITY"},
		"no such process": {"POST", sb + "/processes/proc_x/signal", `{"signal":"SIGTERM"}`, nil, 404, "SANDBOX_NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			c := caller{t, c.ctx}
			status, body := c.call(w.method, w.path, w.body, w.header...)
			var p struct {
				Error struct {
					Code, Reason, Message string
					RequestID             string `json:"request_id"`
				}
			}
			if err := json.Unmarshal([]byte(body), &p); err != nil || status != w.status || p.Error.Reason != w.reason || p.Error.Code == "" || p.Error.Message == "" || p.Error.RequestID == "" {
				t.Errorf("%d %s, want %d %s", status, body, w.status, w.reason)
			}
		})
	}
}

func TestFilesOfAFormAndRawOnesArriveWhole(t *testing.T) {
	c := api(t)
	_, sb := c.make(`{"template":"tiny"}`)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	w.WriteField("path", "/tmp/in/")
	w.WriteField("make_parents", "true")
	for _, name := range []string{"one", "two"} {
		part, err := w.CreateFormFile("file", name)
		if err != nil {
			t.Fatal(err)
		}
		part.Write(bytes.Repeat([]byte(name), 1<<20))
	}
	w.Close()
	res := c.open("POST", sb+"/files/write", &form, "Content-Type", w.FormDataContentType())
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 || strings.Count(string(b), `"written_bytes"`) != 2 {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	const size = 32 << 20
	sent := sha256.New()
	res = c.open("POST", sb+"/files/stream/write?path=/tmp/in/big", io.TeeReader(io.LimitReader(pattern{}, size), sent), "Content-Type", "application/octet-stream")
	if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	got := sha256.New()
	if n, err := io.Copy(got, c.open("GET", sb+"/files/stream/read?path=/tmp/in/big", nil).Body); n != size || err != nil || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Errorf("%d of %d bytes came back, %v", n, size, err)
	}
	if status, two := c.call("POST", sb+"/files/read", `{"path":"/tmp/in/two","limit":6}`); status != 200 || two != "twotwo" {
		t.Errorf("%d %q", status, two)
	}
}

// pattern is an endless source of bytes that do not repeat soon.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) { return unix.Getrandom(p, 0) }

func TestWatchesStreamAsLinesOrServerSentEvents(t *testing.T) {
	c := api(t)
	id, sb := c.make(`{"template":"tiny"}`)
	files := c.open("GET", sb+"/files/watch?path=/tmp", nil)
	if kind := files.Header.Get("Content-Type"); kind != "application/x-ndjson" {
		t.Errorf("files: %s", kind)
	}
	lines := bufio.NewScanner(files.Body)
	next := func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the watch ended: %v", lines.Err())
		}
		return lines.Text()
	}
	if l := next(); !strings.Contains(strings.ReplaceAll(l, " ", ""), `"ready":true`) {
		t.Errorf("the first line is %s", l)
	}
	c.ok("POST", sb+"/exec", `{"cmd":"touch","args":["/tmp/new"]}`)
	if l := next(); !strings.Contains(l, "/tmp/new") || !strings.Contains(l, "CREATED") {
		t.Errorf("the change is %s", l)
	}
	events := c.open("GET", "/v1/sandboxes:watch?sandbox_id="+id, nil, "Accept", "text/event-stream")
	if kind := events.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		t.Errorf("sandboxes: %s", kind)
	}
	done := time.AfterFunc(overrun*20*time.Second, func() { events.Body.Close() })
	defer done.Stop()
	c.ok("POST", sb+"/pause", "{}")
	seen := bufio.NewScanner(events.Body)
	for seen.Scan() {
		if l := seen.Text(); strings.HasPrefix(l, "data:") && strings.Contains(l, "STATE_PAUSED") {
			return
		}
	}
	t.Errorf("no event said that it was paused: %v", seen.Err())
}
