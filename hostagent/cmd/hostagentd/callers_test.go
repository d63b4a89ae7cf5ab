package main

import (
	"testing"

	"google.golang.org/grpc"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
)

// What the agent itself registers is checked when it starts (chassis.WithCallers); here without a VMM, and with what is passed through to guests.
func TestEveryMethodHasARowThatSaysWhoMayCall(t *testing.T) {
	s := grpc.NewServer()
	hostv1.RegisterHostServiceServer(s, hostv1.UnimplementedHostServiceServer{})
	hostv1.RegisterPeerServiceServer(s, hostv1.UnimplementedPeerServiceServer{})
	guestv1.RegisterProcessServiceServer(s, guestv1.UnimplementedProcessServiceServer{})
	guestv1.RegisterFileServiceServer(s, guestv1.UnimplementedFileServiceServer{})
	guestv1.RegisterPortServiceServer(s, guestv1.UnimplementedPortServiceServer{})
	if lacks := callers.Lacks(s.GetServiceInfo()); len(lacks) > 0 {
		t.Errorf("no row for %s", lacks)
	}
	if _, has := callers[guestv1.GuestService_AfterRestore_FullMethodName]; has {
		t.Error("what the agent alone asks of guests has a row")
	}
}
