package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/coveyhq/covey/gateway/internal/meshtest"
)

// noise is size bytes that are the same for the same seed.
func noise(size int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

func sum(t testing.TB, r io.Reader) [sha256.Size]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func TestLargeFilesPassBothWaysInConstantMemory(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	const size = 128 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var res struct {
		WrittenBytes string `json:"written_bytes"`
	}
	g.do("POST", sb+"/files/stream/write?path=a/b/big&make_parents=true", noise(size, 1)).into(t, &res)
	if res.WrittenBytes != "134217728" {
		t.Fatalf("wrote %s", res.WrittenBytes)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url+sb+"/files/stream/read?path=a/b/big", nil)
	req.Header.Set("X-API-Key", meshtest.AdminKey)
	got, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if got.ContentLength != size {
		t.Errorf("Content-Length %d", got.ContentLength)
	}
	if sum(t, got.Body) != sum(t, noise(size, 1)) {
		t.Error("it came back changed")
	}
	// Client, gateway and host are this process: what all of them hold at once stays far below the file's size.
	runtime.ReadMemStats(&after)
	if grown := int64(after.Sys) - int64(before.Sys); grown > 64<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
}

func TestAPartOfAFileIsRead(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	g.do("POST", sb+"/files/stream/write?path=f", strings.NewReader("0123456789"))
	for body, want := range map[string]string{
		`{"path":"f"}`: "0123456789", `{"path":"f","offset":3,"limit":4}`: "3456", `{"path":"f","offset":"8"}`: "89", `{"path":"f","offset":20}`: "",
	} {
		a := g.post(sb+"/files/read", body)
		if a.status != 200 || string(a.body) != want || a.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %d %q", body, a.status, a.body)
		}
	}
	if a := g.do("GET", sb+"/files/stream/read?path=f&offset=2&limit=3", nil); string(a.body) != "234" {
		t.Errorf("by query: %q", a.body)
	}
}

func TestAFormWritesItsFilesWhereItsFieldsSay(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	m.WriteField("path", "dir/")
	m.WriteField("make_parents", "true")
	for _, name := range []string{"one.txt", "two.txt"} {
		w, _ := m.CreateFormFile("file", name)
		io.WriteString(w, "I am "+name)
	}
	m.WriteField("path", "script.sh")
	m.WriteField("mode", "0755")
	w, _ := m.CreateFormFile("file", "whatever")
	io.WriteString(w, "#!/bin/sh\n")
	m.Close()
	var res struct {
		Files []struct {
			File struct {
				Path string
				Mode int
			}
		}
	}
	g.do("POST", sb+"/files/write", &form, "Content-Type", m.FormDataContentType()).into(t, &res)
	if len(res.Files) != 3 || res.Files[0].File.Path != "/dir/one.txt" || res.Files[1].File.Path != "/dir/two.txt" || res.Files[2].File.Mode != 0o755 {
		t.Fatalf("wrote %+v", res)
	}
	if a := g.post(sb+"/files/read", `{"path":"dir/two.txt"}`); string(a.body) != "I am two.txt" {
		t.Errorf("it has %q", a.body)
	}
}

func TestAFieldAfterTheLastFileOfAFormIsRefused(t *testing.T) {
	g := start(t)
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	w, _ := m.CreateFormFile("file", "one.txt")
	io.WriteString(w, "1")
	m.WriteField("path", "dir/elsewhere.txt")
	m.Close()
	a := g.do("POST", "/v1/sandboxes/"+g.Add()+"/files/write", &form, "Content-Type", m.FormDataContentType())
	p := a.problem(t)
	if a.status != 400 || p.Reason != "INVALID_FIELD" || p.Details["field"] != "path" || !strings.Contains(p.Message, "already written: /one.txt") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestABodyThatIsCutOffLeavesNoFile(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "POST "+sb+"/files/stream/write?path=half HTTP/1.1\r\nHost: x\r\nX-API-Key: "+meshtest.AdminKey+"\r\nContent-Length: 1000000\r\n\r\nhalf of it")
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
	c.Close()
	if a := g.do("GET", sb+"/files/stat?path=half", nil); a.status != 404 {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

func TestFilesAreListedMovedAndRemoved(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	for _, step := range []struct{ path, body string }{
		{"/files/mkdir", `{"path":"d/e"}`}, {"/files/stream/write?path=d/f", "x"}, {"/files/move", `{"source":"d/f","destination":"d/g"}`},
		{"/files/remove", `{"path":"d/e","recursive":true}`},
	} {
		if a := g.post(sb+step.path, step.body); a.status != 200 {
			t.Fatalf("%s: %d %s", step.path, a.status, a.body)
		}
	}
	var list struct{ Files []struct{ Name string } }
	g.do("GET", sb+"/files/list?path=d", nil).into(t, &list)
	if len(list.Files) != 1 || list.Files[0].Name != "g" {
		t.Fatalf("left: %+v", list)
	}
}

// open sends a GET whose answer goes on.
func (g *running) open(path string, header ...string) *http.Response {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	g.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", g.url+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+meshtest.AdminKey)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { res.Body.Close() })
	return res
}

func TestChangesOfSandboxesArriveAsTheyHappen(t *testing.T) {
	g := start(t)
	for _, accept := range []string{"application/json", "text/event-stream"} {
		res := g.open("/v1/sandboxes:watch", "Accept", accept) // Begins though there is nothing to tell yet.
		lines := bufio.NewScanner(res.Body)
		id := g.Add()
		seen := func() string {
			for lines.Scan() {
				if strings.Contains(lines.Text(), id) {
					return lines.Text()
				}
			}
			t.Fatal(lines.Err())
			return ""
		}
		if l := seen(); !strings.Contains(l, "STATE_RUNNING") || strings.HasPrefix(l, "data: ") != (accept == "text/event-stream") {
			t.Errorf("%s: %s", accept, l)
		}
		g.do("POST", "/v1/sandboxes/"+id+"/pause", nil)
		if l := seen(); !strings.Contains(l, "STATE_PAUSED") {
			t.Errorf("%s: %s", accept, l)
		}
		res.Body.Close()
	}
}

func TestAnErrorInTheMiddleOfAStreamIsItsLastLine(t *testing.T) {
	g := start(t)
	a := g.do("GET", "/v1/sandboxes/"+g.Add()+"/files/watch?path=d", nil)
	lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
	if a.status != 200 || len(lines) != 3 || !json.Valid([]byte(lines[1])) || !strings.Contains(lines[2], `{"error":{"code":"ABORTED","reason":"WATCH_LOST"`) {
		t.Fatalf("%d %q", a.status, lines)
	}
}

func TestTheConsoleIsText(t *testing.T) {
	g := start(t)
	sb := "/v1/sandboxes/" + g.Add()
	a := g.do("GET", sb+"/logs?tail_bytes=14", nil)
	if string(a.body) != "guestd serves\n" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Errorf("%q", a.body)
	}
	line, err := bufio.NewReader(g.open(sb + "/logs?follow=true").Body).ReadString('\n')
	if err != nil || line != "Linux version 6.1\n" {
		t.Errorf("following: %q, %v", line, err)
	}
}
