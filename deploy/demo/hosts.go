package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The hosts of the demo's mesh.
const hostA, hostB = "host-a", "host-b"

// template saves a sandbox of one host as a template and makes a sandbox of it on the other, which goes on where the first one was.
func (d *Demo) template(ctx context.Context) error {
	sb, err := d.create(ctx, "--template", "tiny", "--memory", "256", "--host-label", "host="+hostA)
	if err != nil {
		return err
	}
	if sb.HostID != hostA {
		return fmt.Errorf("it is on %s", sb.HostID)
	}
	if _, err := d.show(ctx, "exec", "--user", "root", sb.ID, "--", "sh", "-c", "mkdir -p /srv; echo made on "+hostA+" > /srv/model; cat /srv/model"); err != nil {
		return err
	}
	if _, err := d.show(ctx, "snapshot", "create", sb.ID, "demo-template"); err != nil {
		return err
	}
	copied, err := d.create(ctx, "--template", "demo-template", "--host-label", "host="+hostB)
	if err != nil {
		return err
	}
	out, err := d.show(ctx, "exec", copied.ID, "--", "cat", "/srv/model")
	if err == nil && (strings.TrimSpace(out) != "made on "+hostA || copied.HostID != hostB) {
		err = fmt.Errorf("on %s the file says %q", copied.HostID, out)
	}
	if err != nil {
		return err
	}
	if _, err := d.show(ctx, "snapshot", "can-restore", "demo-template"); err != nil {
		return err
	}
	_, err = d.quiet(ctx, "rm", sb.ID, copied.ID)
	return err
}

// counter counts in a shell's memory ten times a second, and shows the count in a file. The shell stays when the command that starts it has ended.
const counter = `mkdir -p /run/count; echo 0 > /run/count/n; echo kept > /srv-note; sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count/.n; mv /run/count/.n /run/count/n; sleep 0.1; done' >/dev/null 2>&1 &`

// count reads the counter of a sandbox.
func (d *Demo) count(ctx context.Context, id string) (int, error) {
	out, err := d.quiet(ctx, "exec", "--user", "root", id, "--", "cat", "/run/count/n")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// resumed pauses a sandbox on one host and resumes it on another, with its memory and its disk.
func (d *Demo) resumed(ctx context.Context) error {
	sb, err := d.create(ctx, "--template", "demo-template", "--label", "role=counter")
	if err != nil {
		return err
	}
	if _, err := d.show(ctx, "exec", "--user", "root", sb.ID, "--", "sh", "-c", counter); err != nil {
		return err
	}
	before, err := d.counting(ctx, sb.ID, 1)
	if err != nil {
		return err
	}
	if _, err := d.show(ctx, "pause", sb.ID); err != nil {
		return err
	}
	if err := d.durable(ctx, sb.ID); err != nil {
		return err
	}
	other := map[string]string{hostA: hostB, hostB: hostA}[sb.HostID]
	if _, err := d.show(ctx, "resume", sb.ID, "--host", other); err != nil {
		return err
	}
	after, err := d.counting(ctx, sb.ID, before)
	if err != nil {
		return err
	}
	note, err := d.show(ctx, "exec", sb.ID, "--", "cat", "/srv-note")
	if err == nil && strings.TrimSpace(note) != "kept" {
		err = fmt.Errorf("the file on its disk says %q", note)
	}
	d.say("the counter in its memory: %d on %s, %d on %s", before, sb.HostID, after, other)
	return err
}

// counting waits until a sandbox's counter has passed a number and counts on, and returns what it shows.
func (d *Demo) counting(ctx context.Context, id string, from int) (int, error) {
	var last int
	err := d.until(ctx, 10*time.Second, func() (bool, error) {
		n, err := d.count(ctx, id)
		last = n
		return n > from, err
	})
	if err == nil && last > from+1000 {
		err = fmt.Errorf("the counter jumped from %d to %d", from, last)
	}
	return last, err
}

// durable waits until a paused sandbox no longer depends on its host.
func (d *Demo) durable(ctx context.Context, id string) error {
	began := time.Now()
	err := d.until(ctx, 30*time.Second, func() (bool, error) {
		out, err := d.quiet(ctx, "get", id, "-o", "json")
		if err != nil {
			return false, err
		}
		var sb struct{ Durable bool }
		return sb.Durable, errors.Join(err, json.Unmarshal([]byte(out), &sb))
	})
	d.say("its saved state no longer depends on its host after %.1f s", time.Since(began).Seconds())
	return err
}

// until asks until it is so, for a time.
func (d *Demo) until(ctx context.Context, within time.Duration, is func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := is()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drain empties the host of the counter, which goes on elsewhere.
func (d *Demo) drain(ctx context.Context) error {
	id, err := d.find(ctx, "role=counter")
	if err != nil {
		return err
	}
	host, err := d.hostOf(ctx, id)
	if err != nil {
		return err
	}
	before, err := d.count(ctx, id)
	if err != nil {
		return err
	}
	out, err := d.show(ctx, "host", "drain", host)
	if err == nil && !strings.Contains(out, host+" is empty") {
		err = errors.New("it does not say that the host is empty")
	}
	if err != nil {
		return err
	}
	now, err := d.hostOf(ctx, id)
	if err != nil {
		return err
	}
	after, err := d.counting(ctx, id, before)
	if err == nil && now == host {
		err = fmt.Errorf("the counter is still on %s", host)
	}
	if err != nil {
		return err
	}
	d.say("the counter: %d on %s, %d on %s", before, host, after, now)
	_, err = d.show(ctx, "host", "uncordon", host)
	return err
}

func (d *Demo) hostOf(ctx context.Context, id string) (string, error) {
	out, err := d.quiet(ctx, "get", id, "-o", "json")
	if err != nil {
		return "", err
	}
	var sb sandbox
	err = json.Unmarshal([]byte(out), &sb)
	return sb.HostID, err
}
