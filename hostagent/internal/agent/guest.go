package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coveyhq/covey/hostagent/internal/machine"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	"github.com/coveyhq/covey/services/chassis/relay"
)

// Waiting for a guest to answer its first connection.
const (
	// A SYN that nobody answered is sent again by the kernel after a second; another connection is quicker.
	redial = 25 * time.Millisecond
	// maxDials are under way at once.
	maxDials = 4
	// entropyBytes is what a restored guest gets.
	entropyBytes = 64
)

// SlotDialer is a slot whose guest can be dialled from inside its namespace.
type SlotDialer interface {
	DialGuest(ctx context.Context) (net.Conn, error)
}

// Guests implements machine.Guests: it speaks to guestd over gRPC, without TLS, as the only way there is from inside the slot's
// namespace. Options are added to each connection.
type Guests struct{ Options []grpc.DialOption }

// Dial implements machine.Guests.
func (g Guests) Dial(slot machine.Slot) (machine.Guest, error) {
	d, ok := slot.(SlotDialer)
	if !ok {
		return nil, fmt.Errorf("slot %s cannot be dialled", slot.ID())
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return hedge(ctx, d.DialGuest) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, Jitter: 0.1, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(relay.MaxMessage), grpc.MaxCallSendMsgSize(relay.MaxMessage)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
	}, g.Options...)
	c, err := grpc.NewClient("passthrough:///guest", opts...)
	if err != nil {
		return nil, err
	}
	c.Connect()
	return &guest{conn: c, guest: guestv1.NewGuestServiceClient(c), process: guestv1.NewProcessServiceClient(c)}, nil
}

// hedge dials until one attempt succeeds or ctx ends. An attempt that neither succeeds nor fails is joined by another, as the
// first may have been sent before there was anybody to hear it.
func hedge(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	running := 0
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	begin := func() {
		running++
		go func() {
			c, err := dial(ctx)
			results <- result{c, err}
		}()
	}
	begin()
	next := time.NewTicker(redial)
	defer next.Stop()
	for {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.conn, nil
			}
			if ctx.Err() != nil {
				return nil, r.err
			}
		case <-next.C:
			if running < maxDials {
				begin()
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// guest is guestd of one VM.
type guest struct {
	conn    *grpc.ClientConn
	guest   guestv1.GuestServiceClient
	process guestv1.ProcessServiceClient
}

// Conn implements Conn.
func (g *guest) Conn() *grpc.ClientConn { return g.conn }

// Close implements machine.Guest.
func (g *guest) Close() error { return g.conn.Close() }

// Ready implements machine.Guest.
func (g *guest) Ready(ctx context.Context) error {
	_, err := g.guest.Health(ctx, &guestv1.HealthRequest{}, grpc.WaitForReady(true))
	return err
}

// connected waits for the connection, so that a time that is sent then is still right when it arrives.
func (g *guest) connected(ctx context.Context) error {
	for {
		state := g.conn.GetState()
		if state == connectivity.Ready || state == connectivity.Shutdown {
			return nil // The call says what is wrong.
		}
		g.conn.Connect()
		if !g.conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
}

// AfterRestore implements machine.Guest.
func (g *guest) AfterRestore(ctx context.Context, id machine.Identity) (machine.Attestation, error) {
	entropy := make([]byte, entropyBytes)
	rand.Read(entropy)
	if err := g.connected(ctx); err != nil {
		return machine.Attestation{}, err
	}
	r, err := g.guest.AfterRestore(ctx, &guestv1.AfterRestoreRequest{
		RestoreId: id.RestoreID, SandboxId: id.SandboxID, NowUnixNs: time.Now().UnixNano(), Entropy: entropy, Hostname: id.Hostname,
		MachineId: id.MachineID, Env: id.Env, Nameservers: id.Nameservers, SameIdentity: id.Same,
	}, grpc.WaitForReady(true))
	if err != nil {
		return machine.Attestation{}, err
	}
	return machine.Attestation{
		EntropyReseeded: r.GetEntropyReseeded(), ClockStep: time.Duration(r.GetClockStepNs()), MachineID: r.GetMachineId(),
		Hostname: r.GetHostname(), StreamsEnded: int(r.GetStreamsEnded()),
	}, nil
}

// Warm implements machine.Guest.
func (g *guest) Warm(ctx context.Context) error {
	r, err := g.process.Exec(ctx, &guestv1.ExecRequest{Cmd: "/bin/sh", Args: []string{"-c", "true"}, TimeoutSec: 20})
	if err != nil {
		return err
	}
	if r.GetExitCode() != 0 {
		return errors.New("/bin/sh does not run: " + r.GetError() + r.GetStderr())
	}
	return nil
}

// Sync implements machine.Guest.
func (g *guest) Sync(ctx context.Context) error {
	_, err := g.guest.Quiesce(ctx, &guestv1.QuiesceRequest{SyncOnly: true})
	return err
}

// Metrics implements machine.Guest.
func (g *guest) Metrics(ctx context.Context) (machine.GuestMetrics, error) {
	r, err := g.guest.GetMetrics(ctx, &guestv1.GetMetricsRequest{})
	if err != nil {
		return machine.GuestMetrics{}, err
	}
	return machine.GuestMetrics{
		MemoryTotal: r.GetMemoryTotalBytes(), MemoryAvailable: r.GetMemoryAvailableBytes(),
		CPUBusy: time.Duration(r.GetCpuBusyUsec()) * time.Microsecond, KeepAlive: int(r.GetKeepAliveHolders()),
	}, nil
}
