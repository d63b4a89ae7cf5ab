package transfer

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAPeerThatIsLateIsAskedAgainSoonAndOneThatSaysNothingIsIll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth("self")
		asked := func(key string) bool {
			return slices.ContainsFunc(h.asks([]string{"peer"}, "", key, 0, true), func(a ask) bool { return a.host == "peer" })
		}
		late := func(key string) bool { return h.waited(h.asks([]string{"peer"}, "", key, 0, true)[0], key) }
		for range 10 { // As long as it answers at all, however late it is.
			if late("one") {
				t.Fatal("it is ill, though it answered a moment before")
			}
			if asked("one") || !asked("other") {
				t.Fatal("it must be left alone for what it is late with, and for nothing else")
			}
			time.Sleep(lastLack)
			if !asked("one") {
				t.Fatal("it is not asked again")
			}
			h.lacking(ask{host: "peer"}, "third")
		}
		late("one")
		time.Sleep(silence)
		if !late("one") {
			t.Fatal("it is well, though nothing was heard of it")
		}
		h.failed("peer")
		if asked("other") {
			t.Fatal("an ill one is asked")
		}
	})
}
