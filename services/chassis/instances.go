package chassis

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"github.com/coveyhq/covey/services/chassis/consul"
)

// EachInstance runs fn for each instance of a service that passes its health check, with a connection to that one, until the instance is gone or
// ctx ends; fn's context ends then, and fn must return. It is for what all instances must be told, like heartbeats. EachInstance returns when ctx has
// ended and every fn has returned.
func (d *Daemon) EachInstance(ctx context.Context, service string, fn func(context.Context, *grpc.ClientConn)) {
	var running sync.WaitGroup
	defer running.Wait()
	ends := map[string]context.CancelFunc{} // by id and address
	d.Watch(ctx, service, func(list []consul.Instance, err error) {
		if err != nil {
			return // What was known stays in force.
		}
		passing := map[string]string{}
		for _, i := range list {
			if i.Passing {
				passing[i.ID+" "+i.Address] = i.Address
			}
		}
		for key, end := range ends {
			if passing[key] == "" {
				end()
				delete(ends, key)
			}
		}
		for key, addr := range passing {
			if ends[key] != nil {
				continue
			}
			one, end := context.WithCancel(ctx)
			ends[key] = end
			running.Go(func() {
				defer end()
				d.withInstance(one, service, addr, fn)
			})
		}
	})
	for _, end := range ends {
		end()
	}
}

func (d *Daemon) withInstance(ctx context.Context, service, addr string, fn func(context.Context, *grpc.ClientConn)) {
	c, err := d.connect("passthrough:///"+addr, service)
	if err != nil {
		d.log.Error("an instance cannot be dialled", "service", service, "address", addr, "error", err)
		return
	}
	defer c.Close()
	fn(ctx, c)
}
