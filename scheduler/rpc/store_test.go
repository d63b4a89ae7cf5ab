package rpc_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/baseline"
	"github.com/coveyhq/covey/scheduler/book"
	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/scheduler/rpc"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// silent is a Consul that is cut off: it never answers.
type silent struct{ *baseline.Store }

func (silent) Set(ctx context.Context, _ baseline.Baseline) (baseline.Baseline, error) {
	<-ctx.Done()
	return baseline.Baseline{}, ctx.Err()
}

type silentCordons struct{}

func (silentCordons) Set(ctx context.Context, _ string, _ bool) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestWhatConsulDoesNotStoreInTimeIsSaid(t *testing.T) {
	b := book.New(book.Config{Timing: started})
	b.Beat(&plan.Host{ID: "a", CPUFeatures: []string{
		"apic", "cmov", "cx8", "fpu", "fxsr", "lm", "mmx", "msr", "nx", "pae", "pge", "pse", "sse", "sse2", "syscall", "tsc",
	}}, nil)
	g := grpc.NewServer()
	s := rpc.Register(g, b, silentCordons{}, silent{baseline.NewStore(nil, nil)}, nil)
	s.StoreTime = 10 * time.Millisecond
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	defer func() {
		g.Stop()
		<-done
	}()
	c, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hosts := schedulerv1.NewHostsServiceClient(c)
	_, err = hosts.CordonHost(within(t), &schedulerv1.CordonHostRequest{HostId: "a", Cordoned: new(true)})
	if status.Code(err) != codes.Unavailable || apierr.Reason(err) != "CORDON_NOT_STORED" {
		t.Errorf("a cordon: %v", err)
	}
	_, err = hosts.SetBaseline(within(t), &schedulerv1.SetBaselineRequest{Common: true})
	if status.Code(err) != codes.Unavailable || apierr.Reason(err) != "BASELINE_NOT_STORED" {
		t.Errorf("a baseline: %v", err)
	}
}
