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

// Get reads a key as it is now, whichever server is asked, with the index of its last change; 0: it is not there.
func (c *Client) Get(ctx context.Context, key string) (value []byte, index uint64, err error) {
	kv, _, err := c.api.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("consul %s: get %s: %w", c.address, key, err)
	}
	if kv == nil {
		return nil, 0, nil
	}
	return kv.Value, kv.ModifyIndex, nil
}

// CompareAndSet writes a key if its last change is still that of an index, 0 for one that is not there. done is false where it was changed.
func (c *Client) CompareAndSet(ctx context.Context, key string, value []byte, index uint64) (done bool, err error) {
	done, _, err = c.api.KV().CAS(&api.KVPair{Key: key, Value: value, ModifyIndex: index}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return false, fmt.Errorf("consul %s: compare and set %s: %w", c.address, key, err)
	}
	return done, nil
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
	var known map[string]string
	c.block(ctx, "keys of "+prefix, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		pairs, meta, err := c.api.KV().List(prefix, q)
		if err != nil {
			return nil, err
		}
		got := make(map[string]string, len(pairs))
		for _, kv := range pairs {
			got[strings.TrimPrefix(kv.Key, prefix)] = string(kv.Value)
		}
		if known == nil || !maps.Equal(known, got) {
			known = got
			fn(maps.Clone(got))
		}
		return meta, nil
	})
}
