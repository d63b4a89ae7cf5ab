package consul

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Put writes a key of Consul's key-value store.
func (c *Client) Put(ctx context.Context, key string, value []byte) error {
	if _, err := c.api.KV().Put(&api.KVPair{Key: key, Value: value}, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("consul %s: put %s: %w", c.address, key, err)
	}
	return nil
}

// Delete removes a key; one that is not there is no error.
func (c *Client) Delete(ctx context.Context, key string) error {
	if _, err := c.api.KV().Delete(key, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("consul %s: delete %s: %w", c.address, key, err)
	}
	return nil
}

// WatchKeys calls fn with all keys under a prefix, which is cut off, and their values, at first and whenever they change, until ctx ends. While Consul
// cannot be asked fn is not called: what it was told last stays in force.
func (c *Client) WatchKeys(ctx context.Context, prefix string, fn func(map[string]string)) {
	var p pause
	var index uint64
	var known map[string]string
	for ctx.Err() == nil {
		got, next, err := c.keys(ctx, prefix, index)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Info("keys are not known; asking again", "prefix", prefix, "error", err)
			index = 0
			p.wait(ctx, nil)
			continue
		}
		p.reset()
		if index = next; known == nil || !maps.Equal(known, got) {
			known = got
			fn(maps.Clone(got))
		}
		rest(ctx, burstTime, nil)
	}
}

func (c *Client) keys(ctx context.Context, prefix string, index uint64) (map[string]string, uint64, error) {
	q := &api.QueryOptions{WaitIndex: index, WaitTime: waitTime}
	pairs, meta, err := c.api.KV().List(prefix, q.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("consul %s: keys of %s: %w", c.address, prefix, err)
	}
	got := make(map[string]string, len(pairs))
	for _, kv := range pairs {
		got[strings.TrimPrefix(kv.Key, prefix)] = string(kv.Value)
	}
	if meta.LastIndex < index {
		return got, 0, nil
	}
	return got, meta.LastIndex, nil
}
