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
