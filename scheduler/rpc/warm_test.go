package rpc_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/scheduler/book"
)

func TestASchedulerThatHasJustStartedCordonsAHostOnceItIsHeardFrom(t *testing.T) {
	s := newScheduler(t, book.Timing{WarmUp: 30 * time.Second})
	answer := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := s.hosts.CordonHost(ctx, &schedulerv1.CordonHostRequest{HostId: "a", Cordoned: new(true)})
		answer <- err
	}()
	s.beat(s.stream(), host("other"))
	select {
	case err := <-answer:
		t.Fatalf("answered before the host was heard from: %v", err)
	default:
	}
	st := s.stream()
	s.beat(st, host("a"))
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if state := s.beat(st, host("a")); state != schedulerv1.HostState_HOST_STATE_CORDONED {
		t.Errorf("it is %s", state)
	}
}

func TestNoBaselineIsChosenBeforeAllHostsHadTheTimeToBeHeardFrom(t *testing.T) {
	s := newScheduler(t, book.Timing{WarmUp: 30 * time.Second})
	s.beat(s.stream(), host("a"))
	short, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	if _, err := s.hosts.SetBaseline(short, &schedulerv1.SetBaselineRequest{Common: true}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("with one host that is known: %v", err)
	}
}
