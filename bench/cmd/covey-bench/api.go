package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	consul "github.com/hashicorp/consul/api"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

const (
	// callPairs is how many calls each way of calling is measured with, for each run.
	callPairs = 40
	// transfer is how much is moved for each measurement of a rate, bytes.
	transfer = 48 << 20
	// idleStreams is how many exec streams are held open at once.
	idleStreams = 500
)

// benchAPI measures what the gateway and the hops behind it cost: calls beside native gRPC past the gateway, bytes beside raw TCP
// to the same guest, and the memory that open streams hold.
func benchAPI(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 1)
	if err != nil {
		return nil, err
	}
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: 1024})
	if err != nil {
		return nil, err
	}
	a := &apiBench{env: e, id: sb.GetId(), metrics: map[string]float64{}}
	for _, step := range []func(context.Context) error{a.findNamespace, a.overhead, a.rates, a.streams} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a.metrics, e.delete(ctx, sb.GetId())
}

// apiBench is one sandbox that is measured with, and what came out.
type apiBench struct {
	*env
	id      string
	netns   string // path of the sandbox's network namespace
	metrics map[string]float64
}

// direct connects to a daemon past the gateway, as the gateway itself does.
func (a *apiBench) direct(service string) (*grpc.ClientConn, error) {
	addr, err := a.address(service)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// overhead takes the time of calls through REST and of the same calls by native gRPC to the service behind, in turns.
func (a *apiBench) overhead(ctx context.Context) error {
	host, err := a.direct("covey-host")
	if err != nil {
		return err
	}
	defer host.Close()
	sandboxd, err := a.direct("covey-sandbox")
	if err != nil {
		return err
	}
	defer sandboxd.Close()
	inside := metadata.NewOutgoingContext(ctx, metadata.Pairs("covey-tenant", "default", "covey-scopes", "read,write,admin"))
	exec, get := guestv1.NewProcessServiceClient(host), sandboxv1.NewSandboxServiceClient(sandboxd)
	var worst float64
	for _, c := range []struct {
		name      string
		rest, own func() error
	}{
		{"get", func() error { return a.rest(ctx, "GET", "", "") }, func() error {
			_, err := get.GetSandbox(inside, &sandboxv1.GetSandboxRequest{SandboxId: a.id})
			return err
		}},
		{"exec", func() error { return a.rest(ctx, "POST", "/exec", `{"cmd":"/bin/true"}`) }, func() error {
			_, err := exec.Exec(inside, &guestv1.ExecRequest{SandboxId: a.id, Cmd: "/bin/true"})
			return err
		}},
	} {
		var rest, own, extra series
		for i := range a.runs*callPairs + 5 {
			x, err := timed(c.rest)
			if err != nil {
				return fmt.Errorf("%s by REST: %w", c.name, err)
			}
			y, err := timed(c.own)
			if err != nil {
				return fmt.Errorf("%s by gRPC: %w", c.name, err)
			}
			if i >= 5 { // The first ones open connections.
				rest, own, extra = append(rest, x), append(own, y), append(extra, x-y)
			}
		}
		rest.row(c.name+" through the gateway, REST", "ms")
		own.row(c.name+" past it, native gRPC", "ms")
		extra.row("the difference of each pair", "ms")
		a.metrics["api_"+c.name+"_overhead_p50_ms"] = extra.median()
		a.metrics["api_"+c.name+"_rest_p99_ms"], a.metrics["api_"+c.name+"_grpc_p99_ms"] = rest.quantile(0.99), own.quantile(0.99)
		worst = max(worst, extra.median())
	}
	a.metrics["api_overhead_p50_ms"] = worst
	return nil
}

func timed(call func() error) (float64, error) {
	began := time.Now()
	err := call()
	return ms(time.Since(began)), err
}

// rest calls a route of the sandbox and reads the answer to its end.
func (a *apiBench) rest(ctx context.Context, method, path, body string) error {
	_, err := a.send(ctx, method, path, strings.NewReader(body), "application/json")
	return err
}

// send sends a body and returns how many bytes came back.
func (a *apiBench) send(ctx context.Context, method, path string, body io.Reader, kind string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.m.URL+"/v1/sandboxes/"+a.id+path, body)
	if err != nil {
		return 0, err
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	req.Header.Set("Authorization", md.Get("authorization")[0])
	req.Header.Set("Content-Type", kind)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		return 0, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, b)
	}
	return io.Copy(io.Discard, res.Body)
}

// guestEnd serves raw TCP in the guest, one connection after the other: the first byte says what is done with the others. "z" has zeros sent, "f" a file, and "u"
// takes what comes into a file and says one byte when it is there.
const guestEnd = `
import os, socket, sys
n = int(sys.argv[1]); zeros = bytes(1 << 16)
l = socket.create_server(('0.0.0.0', 5001))
while True:
    c, _ = l.accept(); what = c.recv(1)
    if what == b'z':
        for _ in range(n >> 16): c.sendall(zeros)
    elif what == b'f':
        with open('/dev/shm/raw', 'rb') as f:
            while b := f.read(1 << 16): c.sendall(b)
    elif what == b'u':
        with open('/dev/shm/raw', 'wb', buffering=0) as f:
            got = 0; buf = bytearray(1 << 16)
            while got < n:
                k = c.recv_into(buf); f.write(memoryview(buf)[:k]); got += k
        c.sendall(b'!')
    c.close()
`

// rates takes how fast bytes go, each way beside raw TCP between the same programs' ends, in turns.
func (a *apiBench) rates(ctx context.Context) error {
	if _, err := a.send(ctx, "POST", "/files/stream/write?path=/tmp/end.py", strings.NewReader(guestEnd), "application/octet-stream"); err != nil {
		return err
	}
	// Port 5001 is 1389 in hexadecimal.
	const serve = "setsid python3 /tmp/end.py %d >/tmp/end.log 2>&1 </dev/null & until grep -q ':1389 ' /proc/net/tcp; do sleep 0.05; done"
	if _, err := a.exec(ctx, a.id, fmt.Sprintf(serve, transfer)); err != nil {
		return err
	}
	for _, r := range []struct {
		metric   string
		way, raw func(context.Context) error
	}{
		{"upload_over_tcp", a.upload, func(ctx context.Context) error { return a.raw(ctx, 'u') }},
		{"download_over_tcp", a.download, func(ctx context.Context) error { return a.raw(ctx, 'f') }},
		{"exec_stream_over_tcp", a.execOutput, func(ctx context.Context) error { return a.raw(ctx, 'z') }},
	} {
		var way, raw series
		for i := range a.runs + 1 {
			x, err := timed(func() error { return r.raw(ctx) })
			if err != nil {
				return fmt.Errorf("%s: raw TCP: %w", r.metric, err)
			}
			y, err := timed(func() error { return r.way(ctx) })
			if err != nil {
				return fmt.Errorf("%s: %w", r.metric, err)
			}
			if i > 0 { // The first one brings programs and pages in.
				raw, way = append(raw, transfer/1e3/x), append(way, transfer/1e3/y)
			}
		}
		name := strings.TrimSuffix(r.metric, "_over_tcp")
		way.row(name, "MB/s")
		raw.row("raw TCP beside it", "MB/s")
		a.metrics[r.metric] = way.median() / raw.median()
		a.metrics[name+"_mb_per_s"] = way.median()
	}
	return nil
}

func (a *apiBench) upload(ctx context.Context) error {
	_, err := a.send(ctx, "POST", "/files/stream/write?path=/dev/shm/api", bytes.NewReader(make([]byte, transfer)), "application/octet-stream")
	return err
}

func (a *apiBench) download(ctx context.Context) error {
	n, err := a.send(ctx, "GET", "/files/stream/read?path=/dev/shm/api", nil, "")
	if err == nil && n != transfer {
		err = fmt.Errorf("%d bytes came", n)
	}
	return err
}

func (a *apiBench) execOutput(ctx context.Context) error {
	call, err := a.open(ctx, &guestv1.ProcessStart{Cmd: "head", Args: []string{"-c", fmt.Sprint(transfer), "/dev/zero"}})
	if err != nil {
		return err
	}
	var n int
	for {
		m, err := call.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n += len(m.GetOutput().GetData())
	}
	if n != transfer {
		return fmt.Errorf("%d bytes came", n)
	}
	return nil
}

// open starts a process on a stream.
func (a *apiBench) open(ctx context.Context, start *guestv1.ProcessStart) (guestv1.ProcessService_ExecStreamClient, error) {
	call, err := a.processes.ExecStream(ctx)
	if err != nil {
		return nil, err
	}
	return call, call.Send(&guestv1.ExecStreamRequest{SandboxId: a.id, Frame: &guestv1.ExecStreamRequest_Start{Start: start}})
}

// streams takes the memory of each daemon before and while many exec streams are open and idle.
func (a *apiBench) streams(ctx context.Context) error {
	before, err := a.memories(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var opening errgroup.Group
	opening.SetLimit(8)
	for range idleStreams {
		opening.Go(func() error {
			call, err := a.open(ctx, &guestv1.ProcessStart{Cmd: "sleep", Args: []string{"3600"}})
			if err == nil {
				_, err = call.Recv() // The process has started.
			}
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		return fmt.Errorf("opening %d streams: %w", idleStreams, err)
	}
	after, err := a.memories(ctx)
	if err != nil {
		return err
	}
	for name, kib := range after {
		per := (kib - before[name]) / idleStreams
		fmt.Printf("  %-36s %9.1f KiB for each of %d idle exec streams\n", name, per, idleStreams)
		a.metrics["idle_stream_"+name+"_kib"] = per
	}
	return nil
}

// apiDaemons are those that an exec stream goes through, on this machine.
var apiDaemons = map[string]string{"gatewayd": "gatewayd", "hostagentd": "hostagentd-host-a"}

// memories reads the private memory of each daemon on a stream's way, KiB.
func (a *apiBench) memories(ctx context.Context) (map[string]float64, error) {
	out := map[string]float64{}
	for name, process := range apiDaemons {
		p := a.m.Process(process)
		if p == nil {
			return nil, fmt.Errorf("the mesh has no %s", process)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
		if err != nil {
			return nil, err
		}
		if out[name], err = rssAnon(string(status)); err != nil {
			return nil, err
		}
	}
	// In the guest it is the child of process 1.
	text, err := a.exec(ctx, a.id, `for d in /proc/[0-9]*; do if grep -qs '^PPid:.1$' $d/status && tr '\0' ' ' < $d/cmdline | grep -q serve; then cat $d/status; exit; fi; done`)
	if err != nil {
		return nil, err
	}
	out["guestd"], err = rssAnon(text)
	return out, err
}

// rssAnon reads the private memory from a process's status, KiB.
func rssAnon(status string) (kib float64, err error) {
	_, rest, ok := strings.Cut(status, "RssAnon:")
	if !ok {
		return 0, fmt.Errorf("no RssAnon in %q", status)
	}
	_, err = fmt.Sscan(rest, &kib)
	return kib, err
}

// raw moves bytes over TCP as guestEnd says, on a connection from the sandbox's network namespace, as the host agent's own are.
func (a *apiBench) raw(ctx context.Context, what byte) error {
	c, err := dialIn(ctx, a.netns, "172.16.0.2:5001")
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{what}); err != nil {
		return err
	}
	if what == 'u' {
		if _, err := c.Write(make([]byte, transfer)); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err == nil && n != transfer {
		err = fmt.Errorf("%d bytes came", n)
	}
	return err
}

// findNamespace finds the sandbox's network namespace by its VMM.
func (a *apiBench) findNamespace(ctx context.Context) error {
	agent, done, err := a.agent()
	if err != nil {
		return err
	}
	defer done()
	list, err := agent.ListSandboxes(ctx, &hostv1.ListSandboxesRequest{})
	if err != nil {
		return err
	}
	for _, sb := range list.GetSandboxes() {
		if sb.GetSandboxId() == a.id {
			a.netns = fmt.Sprintf("/proc/%d/ns/net", sb.GetPid())
			return nil
		}
	}
	return fmt.Errorf("the host has no %s", a.id)
}

// address finds a service in Consul.
func (a *apiBench) address(service string) (string, error) {
	c := consul.DefaultConfig()
	c.Address = a.m.ConsulAddr
	client, err := consul.NewClient(c)
	if err != nil {
		return "", err
	}
	found, _, err := client.Health().Service(service, "", true, nil)
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("no healthy %s in Consul", service)
	}
	return net.JoinHostPort(found[0].Service.Address, strconv.Itoa(found[0].Service.Port)), nil
}
