package agent

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/relay"
)

const execMethod = "/covey.guest.v1.ProcessService/Exec"

// dataPlane tells the methods that are passed through to guestd.
func dataPlane(method string) bool {
	return strings.HasPrefix(method, "/covey.guest.v1.ProcessService/") || strings.HasPrefix(method, "/covey.guest.v1.FileService/") ||
		strings.HasPrefix(method, "/covey.guest.v1.PortService/")
}

// Conn is a guest that can be called; the Guests of this package make such.
type Conn interface {
	Conn() *grpc.ClientConn
}

// NewRelay passes the data plane through to the guests of the host that find returns. Each frame counts as activity.
func NewRelay(find func() *machine.Host) *relay.Relay {
	r := router{find: find}
	return relay.New(dataPlane, r.resolve, relay.Hooks{OnFrame: r.touch, Explain: r.explain})
}

// router finds guests. The host is asked for late, because the daemon's server is made before it.
type router struct {
	find func() *machine.Host
}

func (r router) touch(id, _ string) {
	if m, err := r.find().Find(id); err == nil {
		m.Touch()
	}
}

// explain says what became of the sandbox where the connection to its guest has ended: it is ended with the VM, and knows no reason.
func (r router) explain(id, _ string, err error) error {
	if c := status.Code(err); c != codes.Canceled && c != codes.Unavailable {
		return err
	}
	m, e := r.find().Find(id)
	if e != nil {
		return apierr.E(codes.Aborted, ReasonDestroyed, "sandbox "+id+" was destroyed; what was open to it has ended", "sandbox_id", id)
	}
	st := m.Status()
	switch st.State {
	case machine.Pausing, machine.Paused:
		return apierr.E(codes.Aborted, ReasonPaused, "sandbox "+id+" was paused; what was open to it has ended, its processes go on when it is resumed",
			"sandbox_id", id, "reason", st.Reason)
	case machine.Stopping, machine.Stopped, machine.Failed:
		text := "sandbox " + id + " has ended, and what was open to it"
		if st.Reason != "" {
			text += ": " + st.Reason
		}
		return apierr.E(codes.Aborted, ReasonDestroyed, text, "sandbox_id", id, "reason", st.Reason)
	}
	return err
}

func (r router) resolve(ctx context.Context, method, id string, _ bool) (_ *grpc.ClientConn, _ func(), err error) {
	m, err := r.find().Find(id)
	if err != nil {
		return nil, nil, typed(id, err)
	}
	// The timer stands still from here on. Where it has just fired the call waits, is told SANDBOX_NOT_HERE and comes again once the sandbox
	// was woken.
	end := m.Use()
	defer func() {
		if err != nil {
			end()
		}
	}()
	if err := m.AwaitPause(ctx); err != nil {
		return nil, nil, err
	}
	op := strings.ToLower(method[strings.LastIndexByte(method, '/')+1:])
	g, err := m.Guest(op)
	if err != nil {
		return nil, nil, elsewhere(id, err)
	}
	c, ok := g.(Conn)
	if !ok {
		return nil, nil, apierr.E(codes.Internal, apierr.Internal, "the guest cannot be called", "sandbox_id", id)
	}
	return c.Conn(), func() {
		if strings.HasPrefix(method, execMethod) {
			m.ExecAnswered()
		}
		end()
	}, nil
}

// elsewhere makes the answer for a tombstone: the sandbox may run on another host by now, and only sandboxd knows.
func elsewhere(id string, err error) error {
	if ill := (*machine.IllegalError)(nil); errors.As(err, &ill) && !ill.State.Held() {
		return apierr.E(codes.NotFound, apierr.SandboxNotHere, ill.Error(), "sandbox_id", id, "state", string(ill.State), "reason", ill.Reason)
	}
	return typed(id, err)
}
