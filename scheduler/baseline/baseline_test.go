package baseline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coveyhq/covey/scheduler/plan"
	"github.com/coveyhq/covey/services/chassis/consul"
	"github.com/coveyhq/covey/services/chassis/consul/consultest"
)

// with are the essential features and some more, sorted.
func with(more ...string) []string { return slices.Sorted(slices.Values(append(more, essential...))) }

var fleet = []plan.Host{
	{ID: "b", CPUFeatures: with("avx", "aes"), Labels: map[string]string{"pool": "general"}},
	{ID: "a", CPUFeatures: with("avx", "avx2", "rdrand"), Labels: map[string]string{"pool": "general"}},
	{ID: "c", CPUFeatures: with(), Labels: map[string]string{"pool": "old"}},
}

func TestABaselineIsWhatEveryHostOfThePoolHas(t *testing.T) {
	for _, x := range []struct {
		label    string
		features []string
		common   bool
		want     []string
		refused  string
	}{
		{label: "pool=general", common: true, want: with("avx")},
		{label: "", common: true, want: with()},
		{label: "pool=general", features: with("avx", "sse2"), want: with("avx")},
		{label: "pool=general", features: with("avx2"), refused: "features: must be features that every host of the pool has (" + strings.Join(with("avx"), ", ") + "); b lacks avx2"},
		{label: "pool=general", features: []string{"avx", "sse2"}, refused: "features: must include what no guest runs without"},
		{label: "pool=general", features: with("sse4.2"), refused: `names as in /proc/cpuinfo, like sse4_2, got "sse4.2"`},
		{label: "pool=general", refused: "features: must be given, or common be true"},
		{label: "pool=general", features: with(), common: true, refused: "features: must be empty with common"},
		{label: "pool=new", common: true, refused: `label: must be a label that a host has, or empty for all hosts; of 3 hosts none has "pool=new"`},
		{label: "pool", common: true, refused: `label: must be key=value like a host's label, or empty for all hosts, got "pool"`},
	} {
		b, err := Choose(fleet, x.label, x.features, x.common)
		refusal := (*FieldError)(nil)
		switch {
		case x.refused == "" && (err != nil || !slices.Equal(b.Features, x.want) || b.Label != x.label):
			t.Errorf("%s %v: got %+v, %v", x.label, x.features, b, err)
		case x.refused != "" && (!errors.As(err, &refusal) || !strings.Contains(err.Error(), x.refused)):
			t.Errorf("%s %v: it says %v, want %q", x.label, x.features, err, x.refused)
		}
	}
	if _, err := Choose(append(fleet, plan.Host{ID: "d"}), "", nil, true); err == nil || !strings.Contains(err.Error(), "must include") {
		t.Errorf("a host that says nothing: %v", err)
	}
}

func TestAHostInSeveralPoolsHasWhatAllTheirBaselinesLeave(t *testing.T) {
	s := NewStore(nil, slog.New(slog.DiscardHandler))
	labels := map[string]string{"pool": "general", "zone": "z"}
	if b, known := s.For(labels); !known || len(b.Features) > 0 || b.Generation != 0 {
		t.Errorf("at first there is %+v, known %v", b, known)
	}
	changed := s.Changed()
	set := func(label string, features ...string) int64 {
		b, err := s.Set(context.Background(), Baseline{Label: label, Features: features})
		if err != nil {
			t.Fatal(err)
		}
		return b.Generation
	}
	first := set("pool=general", "avx", "sse2")
	<-changed
	set("", "aes", "avx")
	last := set("pool=old", "sse2")
	if b, _ := s.For(labels); !slices.Equal(b.Features, []string{"avx"}) || b.Generation != last || last <= first {
		t.Errorf("in two pools there is %+v; the generations are %d to %d", b, first, last)
	}
	lifted := set("")
	if b, _ := s.For(labels); !slices.Equal(b.Features, []string{"avx", "sse2"}) || b.Generation != lifted {
		t.Errorf("with one lifted there is %+v, and not of generation %d", b, lifted)
	}
	if _, has := s.Get(""); has {
		t.Error("what was lifted is there")
	}
}

func TestNoBaselineIsSetBeforeThoseInConsulAreKnown(t *testing.T) {
	client, err := consul.New("127.0.0.1:1", "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(client, slog.New(slog.DiscardHandler))
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if b, err := s.Set(short, Baseline{Features: []string{"sse2"}}); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "get") {
		t.Errorf("set: %+v, %v", b, err)
	}
	set := make(chan error, 1)
	go func() {
		_, err := s.Set(t.Context(), Baseline{Features: []string{"sse2"}})
		set <- err
	}()
	s.take(nil)
	if err := <-set; err == nil || errors.Is(err, errUnknown) || !strings.Contains(err.Error(), "get") {
		t.Errorf("once they are known it is not put there: %v", err)
	}
}

// Two schedulers that have not heard of each other, one of whose clocks is an hour ahead, set one pool's baseline.
func TestTwoSchedulersThatSetOnePoolsBaselineAtOneMomentAgreeOnTheLast(t *testing.T) {
	server := consultest.Start(t)
	client, err := consul.New(server.Addr, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	stores := [2]*Store{}
	for i := range stores {
		stores[i] = NewStore(client, slog.New(slog.DiscardHandler))
		stores[i].take(nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	set := func(s *Store, label string, features ...string) Baseline {
		b, err := s.Set(ctx, Baseline{Label: label, Features: features})
		if err != nil {
			t.Error(err)
		}
		return b
	}
	stores[0].take(map[string]string{"x": fmt.Sprintf(`{"label": "pool=ahead", "generation": %d}`, time.Now().Add(time.Hour).UnixMilli())})
	ahead := set(stores[0], "pool=general", "avx", "sse2")
	if after := set(stores[1], "pool=general", "sse2"); after.Generation <= ahead.Generation {
		t.Errorf("what was set later has generation %d, what it replaced %d", after.Generation, ahead.Generation)
	}

	const each = 10
	var made [2][each]Baseline
	var setting sync.WaitGroup
	for i := range stores {
		setting.Go(func() {
			for n := range each {
				made[i][n] = set(stores[i], "pool=general", fmt.Sprintf("f%d_%d", i, n))
			}
		})
	}
	setting.Wait()
	seen, last := map[int64]bool{}, Baseline{}
	for _, b := range slices.Concat(made[0][:], made[1][:]) {
		if seen[b.Generation] {
			t.Errorf("two have generation %d", b.Generation)
		}
		if seen[b.Generation] = true; b.Generation > last.Generation {
			last = b
		}
	}
	later := NewStore(client, slog.New(slog.DiscardHandler))
	reading, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, s := range append(stores[:], later) {
		running.Go(func() { s.Run(reading) })
	}
	for _, s := range append(stores[:], later) {
		for got := (Baseline{}); !slices.Equal(got.Features, last.Features); {
			changed := s.Changed()
			if got, _ = s.Get("pool=general"); slices.Equal(got.Features, last.Features) {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("a scheduler has %+v, the last was %+v", got, last)
			}
		}
	}
	stop()
	running.Wait()
}
