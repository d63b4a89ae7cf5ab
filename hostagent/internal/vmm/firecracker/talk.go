package firecracker

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/tether"
)

const kill = unix.SIGKILL

var protocol = tether.Protocol{Closed: api.ErrClosed, Garbage: api.ErrGarbage, Refusal: func(err error) bool {
	var refusal *api.Refusal
	return errors.As(err, &refusal)
}}

// request is one request of the API.
type request struct {
	method, path string
	body         any
}

// do makes a request, in bounded time.
func (v *VM) do(ctx context.Context, r request, out any) error {
	return v.Ask(ctx, func(ctx context.Context) error {
		return v.client.Do(ctx, r.method, r.path, r.body, out, v.driver.conf.HangTime)
	})
}
