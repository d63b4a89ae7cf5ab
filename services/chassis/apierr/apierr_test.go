package apierr_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
)

func TestAnErrorCarriesOneErrorInfo(t *testing.T) {
	err := apierr.E(codes.NotFound, "SANDBOX_NOT_FOUND", "no sandbox sb_1", "sandbox_id", "sb_1", "odd")
	st := status.Convert(err)
	if st.Code() != codes.NotFound || st.Message() != "no sandbox sb_1" || len(st.Details()) != 1 {
		t.Fatalf("got %v with %d details", st, len(st.Details()))
	}
	info := apierr.Info(fmt.Errorf("wrapped: %w", err))
	if info.GetReason() != "SANDBOX_NOT_FOUND" || info.GetDomain() != "covey.dev" || info.GetMetadata()["sandbox_id"] != "sb_1" {
		t.Fatalf("got %v", info)
	}
	if v, ok := info.GetMetadata()["odd"]; !ok || v != "" {
		t.Fatalf("a key without a value: got %q, %v", v, ok)
	}
	if r := apierr.Reason(errors.New("plain")); r != "" {
		t.Fatalf("reason of a plain error: %q", r)
	}
}

func TestAnIllegalFieldIsNamedForProgramsAndPeople(t *testing.T) {
	err := apierr.Field("vcpus", "must be 1 to 8, got 1000")
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || st.Message() != "vcpus: must be 1 to 8, got 1000" {
		t.Fatalf("got %v", st)
	}
	if apierr.Reason(err) != apierr.InvalidField || apierr.Info(err).GetMetadata()["field"] != "vcpus" {
		t.Fatalf("got %v", apierr.Info(err))
	}
	for _, d := range st.Details() {
		if b, ok := d.(*errdetails.BadRequest); ok && b.GetFieldViolations()[0].GetField() == "vcpus" {
			return
		}
	}
	t.Fatal("no BadRequest detail")
}

func TestCodeOKNeverHidesAnError(t *testing.T) {
	if err := apierr.E(codes.OK, "X", "boom"); status.Code(err) != codes.Internal {
		t.Fatalf("got %v", err)
	}
}
