package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coveyhq/covey/services/chassis/consul/consultest"
)

func TestAHostThatBeatsIsNotLostForACheckThatHasJustFailed(t *testing.T) {
	c := consultest.Start(t)
	path := filepath.Join(t.TempDir(), "schedulerd.yaml")
	// It never counts as silent here, and so its check never as failed for long.
	text := fmt.Sprintf("chassis: {consul: {address: %q, check_interval: 200ms}, log: {level: warn}}\ntiming: {silence: 1h, warm_up: 10s}\n", c.Addr)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMain(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.daemon.Listen(); err != nil {
		t.Fatal(err)
	}
	running(t, m.run)
	v := look(t, m.daemon.Addr())
	a, _ := startHost(t, c.Addr, "a")
	v.until("a=READY")
	// As where Consul was cut off from the host, is back and has not looked again.
	a.SetServing(false)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		if h, known := m.book.Host("a"); known && h.CheckIsFailing && isCritical(t, c.Addr) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("neither Consul nor the scheduler knows in 30 s that its check fails")
		}
	}
	v.until("a=READY")
	v.mustPlace("sb_1", "a")
}

// isCritical tells whether Consul says of a host that its check fails.
func isCritical(t *testing.T, consul string) bool {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + consul + "/v1/health/state/critical")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(body), "covey-host")
}
