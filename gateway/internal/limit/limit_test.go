package limit

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestACallerGetsItsRateAndIsToldWhenToComeBack(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(Rate{PerSecond: 2, Burst: 3}, Rate{})
	l.now = func() time.Time { return now }
	for i := range 3 {
		if err := l.Allow("acme", "key_1"); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	for range 2 { // What is refused costs nothing.
		st := status.Convert(l.Allow("acme", "key_1"))
		var wait time.Duration
		for _, d := range st.Details() {
			if r, ok := d.(*errdetails.RetryInfo); ok {
				wait = r.GetRetryDelay().AsDuration()
			}
		}
		if st.Code() != codes.ResourceExhausted || wait != 500*time.Millisecond {
			t.Fatalf("%v, wait %s", st, wait)
		}
	}
	if err := l.Allow("acme", "key_2"); err != nil {
		t.Errorf("another key: %v", err)
	}
	now = now.Add(500 * time.Millisecond)
	if err := l.Allow("acme", "key_1"); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}

func TestATenantsKeysShareItsRate(t *testing.T) {
	l := New(Rate{PerSecond: 100}, Rate{PerSecond: 1, Burst: 2})
	now := time.Unix(1000, 0)
	l.now = func() time.Time { return now }
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.ResourceExhausted} {
		if err := l.Allow("acme", fmt.Sprint("key_", i)); status.Code(err) != want {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if err := l.Allow("other", "key_9"); err != nil {
		t.Errorf("another tenant: %v", err)
	}
}

func TestCallersAreForgottenOnlyWhenNothingIsLost(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(Rate{PerSecond: 1, Burst: 1}, Rate{})
	l.now = func() time.Time { return now }
	for i := range maxBuckets {
		l.Allow("acme", fmt.Sprint("key_", i))
	}
	now = now.Add(time.Second)
	l.Allow("acme", "key_0") // Its bucket is empty again.
	l.Allow("acme", "new")
	if len(l.buckets) != 2 {
		t.Errorf("%d buckets are kept", len(l.buckets))
	}
	if l.Allow("acme", "key_0") == nil {
		t.Error("a caller got more than its rate")
	}
}

func TestWithoutARateNothingIsLimitedAndRatesAreChecked(t *testing.T) {
	l := New(Rate{}, Rate{})
	for range 10000 {
		if err := l.Allow("acme", "key_1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []Rate{{PerSecond: -1}, {PerSecond: 1, Burst: -1}, {Burst: 1}} {
		if r.Validate() == nil {
			t.Errorf("%+v is taken", r)
		}
	}
}

func TestGatewaysDivideARateAmongThem(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(Rate{PerSecond: 4, Burst: 8}, Rate{PerSecond: 8, Burst: 16})
	l.now = func() time.Time { return now }
	allowed := func() (n int) {
		for range 100 {
			if l.Allow("acme", "key_1") == nil {
				n++
			}
		}
		return n
	}
	if l.Allow("acme", "key_1") != nil {
		t.Fatal("the first call is refused")
	}
	l.Share(4) // Of what is left in hand, no more than the share is kept.
	if n := allowed(); n != 2 {
		t.Errorf("a fourth of 8 at once is %d", n)
	}
	now = now.Add(2 * time.Second)
	if n := allowed(); n != 2 {
		t.Errorf("a fourth of 4 in a second is %d in two", n)
	}
	l.Share(0)
	now = now.Add(2 * time.Second)
	if n := allowed(); n != 8 || l.Sharers() != 1 {
		t.Errorf("alone it is %d", n)
	}
}
