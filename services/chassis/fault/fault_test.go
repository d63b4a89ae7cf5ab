package fault_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"

	"github.com/coveyhq/covey/services/chassis/fault"
)

func TestAnErrorIsOfItsKindAndOfItsCause(t *testing.T) {
	err := fmt.Errorf("wrapped: %w", &fault.Error{Kind: fault.Unavailable, Message: "the store is out of reach", Err: io.ErrUnexpectedEOF})
	if !errors.Is(err, fault.Unavailable) || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fault.NotFound) {
		t.Errorf("%v is of another kind or cause", err)
	}
	if got := err.Error(); got != "wrapped: the store is out of reach: unexpected EOF" {
		t.Errorf("it says %q", got)
	}
}

func TestAStoredErrorIsTheSameButForItsCause(t *testing.T) {
	stored, err := json.Marshal(&fault.Error{Kind: fault.Aborted, Reason: "R", Message: "m", Meta: map[string]string{"k": "v"}, Err: io.EOF})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"Kind":"aborted","Reason":"R","Message":"m","Meta":{"k":"v"}}`; string(stored) != want {
		t.Errorf("stored as %s, want %s", stored, want)
	}
	var back fault.Error
	if err := json.Unmarshal(stored, &back); err != nil || !reflect.DeepEqual(back, fault.Error{Kind: fault.Aborted, Reason: "R", Message: "m", Meta: map[string]string{"k": "v"}}) {
		t.Errorf("it comes back as %+v (%v)", back, err)
	}
}

func TestAnIllegalFieldIsInvalidAndNamed(t *testing.T) {
	if e := fault.Field("vcpus", "must be 1 to %d", 8); e.Kind != fault.Invalid || e.Reason != "INVALID_FIELD" || e.Field != "vcpus" || e.Message != "must be 1 to 8" {
		t.Errorf("%+v", e)
	}
}
