package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheDocumentationShowsInABrowser has a headless Chromium run the page, which needs nothing but the gateway. With COVEY_SCREENSHOT set, a picture of it is
// written there.
func TestTheDocumentationShowsInABrowser(t *testing.T) {
	ctx := start(t)
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no Chromium: with Debian's package chromium (400 MB) installed, the page is shown in it")
	}
	ctx, cancel := context.WithTimeout(ctx, overrun*time.Minute)
	defer cancel()
	common := []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(), "--virtual-time-budget=20000",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1200,1600",
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, browser, append(common, args...)...)
		cmd.Dir = t.TempDir()
		cmd.WaitDelay = 5 * time.Second
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("chromium: %v", err)
		}
		return string(out)
	}
	page := run("--dump-dom", s.m.URL+"/docs/")
	for _, want := range []string{"swagger-ui", "/v1/sandboxes/{sandbox_id}", "exec/stream", "files/write", "Makes a token for a port"} {
		if !strings.Contains(strings.ReplaceAll(page, "\u200b", ""), want) {
			t.Errorf("the page as shown has no %q", want)
		}
	}
	if strings.Contains(page, "Failed to load API definition") {
		t.Error("the page could not load the description")
	}
	if into := os.Getenv("COVEY_SCREENSHOT"); into != "" {
		picture, err := filepath.Abs(into)
		if err != nil {
			t.Fatal(err)
		}
		run("--screenshot="+picture, s.m.URL+"/docs/")
	}
}
