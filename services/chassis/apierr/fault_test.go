package apierr_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/fault"
)

func TestEveryFaultHasItsStatus(t *testing.T) {
	for kind, want := range map[fault.Kind]codes.Code{
		fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound, fault.Exists: codes.AlreadyExists, fault.Precondition: codes.FailedPrecondition,
		fault.Exhausted: codes.ResourceExhausted, fault.Aborted: codes.Aborted, fault.OutOfRange: codes.OutOfRange, fault.Unauthenticated: codes.Unauthenticated,
		fault.Denied: codes.PermissionDenied, fault.Unavailable: codes.Unavailable, fault.Deadline: codes.DeadlineExceeded, fault.DataLoss: codes.DataLoss,
		fault.Internal: codes.Internal,
	} {
		err := fmt.Errorf("wrapped: %w", &fault.Error{Kind: kind, Reason: "REASON", Message: "a sentence", Meta: map[string]string{"key": "value"}})
		got := apierr.From(t.Context(), slog.New(slog.DiscardHandler), "somed", err)
		if st := status.Convert(got); st.Code() != want || st.Message() != "a sentence" || apierr.Reason(got) != "REASON" || apierr.Info(got).GetMetadata()["key"] != "value" {
			t.Errorf("%s: %v, %v", kind, st, apierr.Info(got))
		}
	}
}

func TestWhatIsNoFaultIsShownToTheLogAlone(t *testing.T) {
	var log bytes.Buffer
	from := func(err error) error {
		log.Reset()
		return apierr.From(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "somed", err)
	}
	if err := from(nil); err != nil {
		t.Errorf("none: %v", err)
	}
	secret := errors.New("password=1234")
	err := from(secret)
	if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != "internal error; see the log of somed" || apierr.Reason(err) != apierr.Internal || !strings.Contains(log.String(), "password") {
		t.Errorf("an error of ours: %v; the log has %q", st, log.String())
	}
	err = from(&fault.Error{Kind: fault.Unavailable, Reason: "STORE", Message: "out of reach", Err: secret})
	if st := status.Convert(err); st.Message() != "out of reach" || !strings.Contains(log.String(), "password") {
		t.Errorf("a fault with a cause: %v; the log has %q", st, log.String())
	}
	for cause, want := range map[error]codes.Code{context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded, status.Error(codes.Unavailable, "gone"): codes.Unavailable} {
		wrapped := cause
		if _, is := status.FromError(cause); !is {
			wrapped = fmt.Errorf("while reading: %w", cause)
		}
		if got := from(wrapped); status.Code(got) != want || log.Len() > 0 {
			t.Errorf("%v: %v; the log has %q", cause, got, log.String())
		}
	}
	if got := from(io.EOF); status.Code(got) != codes.Internal {
		t.Errorf("the end of a file: %v", got)
	}
	if got := from(fault.Field("vcpus", "must be 1")); status.Code(got) != codes.InvalidArgument || apierr.Info(got).GetMetadata()["field"] != "vcpus" {
		t.Errorf("an illegal field: %v", got)
	}
}
