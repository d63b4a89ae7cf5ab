package consul

import (
	"context"

	"github.com/hashicorp/consul/api"
)

// block makes a blocking query again and again until ctx ends. Query takes over what it gets. What is a name for the log.
func (c *Client) block(ctx context.Context, what string, query func(*api.QueryOptions) (*api.QueryMeta, error)) {
	var p pause
	var index uint64
	for ctx.Err() == nil {
		meta, err := query((&api.QueryOptions{WaitIndex: index, WaitTime: waitTime}).WithContext(ctx))
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Warn("Consul does not answer; what was known stays in force", "consul", c.address, "asked_for", what, "error", err)
			index = 0
			p.wait(ctx, nil)
			continue
		}
		p.reset()
		if meta.LastIndex < index {
			index = 0 // Consul began anew; an old index would wait for ever.
		} else {
			index = meta.LastIndex
		}
		rest(ctx, burstTime, nil)
	}
}
