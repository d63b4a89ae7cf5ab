package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func (d *Demo) runOnce(ctx context.Context) error {
	out, err := d.show(ctx, "run", "--", "sh", "-c", "echo hello from $(hostname); exit 0")
	if err == nil && !strings.Contains(out, "hello from sb-") {
		err = fmt.Errorf("it printed %q", out)
	}
	return err
}

const program = `import platform, os
u = platform.uname()
print("kernel", u.release, "on", u.machine)
print("cpus", os.cpu_count())
print("sum of the first million squares:", sum(i * i for i in range(1_000_001)))`

func (d *Demo) python(ctx context.Context) error {
	sb, err := d.create(ctx, "--vcpus", "2", "--label", "demo=yes", "--label", "role=a")
	if err != nil {
		return err
	}
	out, err := d.show(ctx, "exec", sb.ID, "--", "python3", "-c", program)
	if err != nil {
		return err
	}
	for _, want := range []string{"-cloud-amd64 on x86_64", "cpus 2", "333333833333500000"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("it did not print %q", want)
		}
	}
	return nil
}

// a is the sandbox of the first steps.
func (d *Demo) a(ctx context.Context) (string, error) { return d.find(ctx, "role=a") }

func (d *Demo) find(ctx context.Context, label string) (string, error) {
	out, err := d.quiet(ctx, "ls", "--state", "running", "--label", label, "-o", "json")
	if err != nil {
		return "", err
	}
	var list struct{ Sandboxes []sandbox }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return "", fmt.Errorf("covey ls -o json printed %q: %w", out, err)
	}
	if len(list.Sandboxes) != 1 {
		return "", fmt.Errorf("%d sandboxes have the label %s", len(list.Sandboxes), label)
	}
	return list.Sandboxes[0].ID, nil
}

// arrivals notes when each line came.
type arrivals struct {
	indented
	at []time.Time
}

func (a *arrivals) Write(b []byte) (int, error) {
	for range bytes.Count(b, []byte("\n")) {
		a.at = append(a.at, time.Now())
	}
	return a.indented.Write(b)
}

func (d *Demo) stream(ctx context.Context) error {
	id, err := d.a(ctx)
	if err != nil {
		return err
	}
	script := "for i in 1 2 3 4 5; do echo tick $i; sleep 0.4; done"
	d.say("$ covey exec %s -- sh -c '%s'", id, script)
	seen := &arrivals{indented: indented{w: d.out, start: true}}
	if err := d.covey(ctx, seen, "exec", id, "--", "sh", "-c", script); err != nil {
		return err
	}
	if len(seen.at) != 5 {
		return fmt.Errorf("%d lines came, not 5", len(seen.at))
	}
	spread := seen.at[4].Sub(seen.at[0])
	d.say("5 lines came over %.1f s", spread.Seconds())
	if spread < time.Second {
		return errors.New("they came all at once: nothing was streamed")
	}
	return nil
}

func (d *Demo) files(ctx context.Context) error {
	id, err := d.a(ctx)
	if err != nil {
		return err
	}
	content := make([]byte, 8<<20)
	rand.Read(content)
	in, back := filepath.Join(d.dir, "in.bin"), filepath.Join(d.dir, "back.bin")
	if err := os.WriteFile(in, content, 0o600); err != nil {
		return err
	}
	for _, call := range [][]string{{"cp", in, id + ":data.bin"}, {"exec", id, "--", "sha256sum", "data.bin"}, {"cp", id + ":data.bin", back}} {
		if _, err := d.show(ctx, call...); err != nil {
			return err
		}
	}
	got, err := os.ReadFile(back)
	if err != nil {
		return err
	}
	d.say("%x  here, before", sha256.Sum256(content))
	d.say("%x  here, after the round trip", sha256.Sum256(got))
	if !bytes.Equal(got, content) {
		return errors.New("it is not the same")
	}
	return nil
}

// rest shows that no client of ours is needed.
func (d *Demo) rest(ctx context.Context) error {
	id, err := d.a(ctx)
	if err != nil {
		return err
	}
	body := `{"cmd":"python3","args":["-c","print(6*7)"]}`
	url := d.m.URL + "/v1/sandboxes/" + id + "/exec"
	d.say("$ curl -H \"Authorization: Bearer $COVEY_API_KEY\" --json '%s' %s", body, url)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	d.say("%s %s", res.Status, strings.Join(strings.Fields(string(raw)), " "))
	var answer struct{ Stdout string }
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || answer.Stdout != "42\n" {
		return fmt.Errorf("it answered %s with stdout %q", res.Status, answer.Stdout)
	}
	return nil
}

func (d *Demo) removeAll(ctx context.Context) error {
	out, err := d.quiet(ctx, "ls", "-o", "json")
	if err != nil {
		return err
	}
	var list struct{ Sandboxes []sandbox }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	args := []string{"rm"}
	for _, sb := range list.Sandboxes {
		if sb.State != "STATE_STOPPED" && sb.State != "STATE_FAILED" {
			args = append(args, sb.ID)
		}
	}
	_, err = d.show(ctx, args...)
	return err
}
