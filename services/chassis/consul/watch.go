package consul

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	// waitTime is how long Consul may hold a blocking query.
	waitTime = 5 * time.Minute
	// relearnTime is how long after its return Consul is not believed that an instance is gone: daemons need up to mostPause to register again.
	relearnTime = 10 * time.Second
	// burstTime joins changes that come together into one answer.
	burstTime = 20 * time.Millisecond
)

// Instance is one daemon of a service.
type Instance struct {
	ID      string
	Address string // host:port
	Meta    map[string]string
	Passing bool // what Consul's health checks say
}

func (a Instance) equal(b Instance) bool {
	return a.ID == b.ID && a.Address == b.Address && a.Passing == b.Passing && maps.Equal(a.Meta, b.Meta)
}

// Watch calls fn with the instances of a service, by id, at first and whenever they change, until ctx ends. While Consul cannot be asked, fn gets the
// instances that are known and the error. A value in wake, which may be nil, ends a pause between attempts.
func (c *Client) Watch(ctx context.Context, service string, wake <-chan struct{}, fn func([]Instance, error)) {
	w := watch{Client: c, service: service, fn: fn}
	var p pause
	for ctx.Err() == nil {
		err := w.step(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			p.reset()
			rest(ctx, burstTime, nil)
			continue
		}
		w.away(err)
		p.wait(ctx, wake)
	}
}

// watch is what one Watch knows. One goroutine owns it.
type watch struct {
	*Client
	service string
	fn      func([]Instance, error)

	index   uint64 // of Consul's last answer; 0 asks for an answer at once
	known   []Instance
	told    bool      // known was given to fn, without an error since
	relearn time.Time // until then instances are only added
}

// step asks once and tells what changed.
func (w *watch) step(ctx context.Context) error {
	wait := waitTime
	learning := time.Until(w.relearn)
	if learning > 0 {
		wait = min(wait, learning+time.Second)
	}
	got, index, err := w.query(ctx, wait)
	if err != nil {
		return err
	}
	if index < w.index {
		index = 0 // Consul began anew; an old index would wait for ever.
	}
	w.index = index
	if time.Until(w.relearn) > 0 {
		got = union(w.known, got)
	}
	if w.told && slices.EqualFunc(w.known, got, Instance.equal) {
		return nil
	}
	w.known, w.told = got, true
	w.fn(got, nil)
	return nil
}

// away notes that Consul cannot be asked.
func (w *watch) away(err error) {
	if w.told || w.known == nil {
		w.fn(w.known, err)
	}
	w.index, w.told, w.relearn = 0, false, time.Now().Add(relearnTime)
}

func (w *watch) query(ctx context.Context, wait time.Duration) ([]Instance, uint64, error) {
	q := &api.QueryOptions{AllowStale: true, WaitIndex: w.index, WaitTime: wait}
	entries, meta, err := w.api.Health().Service(w.service, "", false, q.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("consul %s: %w", w.address, err)
	}
	list := make([]Instance, 0, len(entries))
	for _, e := range entries {
		host := e.Service.Address
		if host == "" {
			host = e.Node.Address
		}
		list = append(list, Instance{
			ID: e.Service.ID, Address: net.JoinHostPort(host, strconv.Itoa(e.Service.Port)), Meta: e.Service.Meta,
			Passing: e.Checks.AggregatedStatus() == api.HealthPassing,
		})
	}
	sortByID(list)
	return list, meta.LastIndex, nil
}

// union is got and what else is known.
func union(known, got []Instance) []Instance {
	out := slices.Clone(got)
	for _, k := range known {
		if !slices.ContainsFunc(got, func(g Instance) bool { return g.ID == k.ID }) {
			out = append(out, k)
		}
	}
	sortByID(out)
	return out
}

func sortByID(list []Instance) {
	slices.SortFunc(list, func(a, b Instance) int {
		if a.ID < b.ID {
			return -1
		}
		if a.ID > b.ID {
			return 1
		}
		return 0
	})
}
