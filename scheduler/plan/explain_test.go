package plan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestExplanations runs the scenarios of testdata/explain; `go test ./plan -rewrite` writes what comes out into it.
func TestExplanations(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		f := NewFleet()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "fleet":
				f = NewFleet()
				for line := range strings.Lines(d.Input) {
					f.Put(parseHost(t, line))
				}
				return plural(f.View().Len(), "host")
			case "reserve":
				r := parseRequest(t, d)
				row, known := f.View().Row(r.HostID)
				if !known {
					return "no such host"
				}
				f.Reserve(row, r.Resources, r.SpreadKey)
				return fmt.Sprintf("held: %s", f.View().Held(row))
			case "explain":
				return explain(f, parseRequest(t, d))
			case "refuse":
				return refuse(f, parseRequest(t, d))
			}
			t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
			return ""
		})
	})
}

func explain(f *Fleet, r *Request) string {
	e := Explain(f.Freeze(), r)
	var b strings.Builder
	for _, v := range e.Verdicts {
		fmt.Fprintf(&b, "%-8s %7.1f  %s\n", v.HostID, v.Score, strings.Join(v.Reasons, "; "))
	}
	fmt.Fprintln(&b, e.Summary)
	// The choice itself must agree.
	d, ok := Choose(f.View(), r, rand.New(rand.NewPCG(1, 2)))
	switch {
	case !ok && e.Chosen != "":
		b.WriteString("BUT nothing is chosen\n")
	case ok && f.View().Host(d.Row).ID != e.Chosen:
		fmt.Fprintf(&b, "BUT %s is chosen\n", f.View().Host(d.Row).ID)
	}
	return b.String()
}

func refuse(f *Fleet, r *Request) string {
	if _, ok := Choose(f.View(), r, rand.New(rand.NewPCG(1, 2))); ok {
		return "it fits"
	}
	var err error = Refuse(f.View(), r)
	var none *NoHostError
	if !errors.As(err, &none) {
		return "no NoHostError"
	}
	return fmt.Sprintf("%s\nhopeless: %v", err, none.Hopeless)
}

// parseHost reads a line like "a zone=z1 8/16384/65536/10 used=2/512/0/1 state=lost label:gpu=yes cpu=avx,avx2 driver=qemu/tcg has=snap_1".
func parseHost(t *testing.T, line string) *Host {
	words := strings.Fields(line)
	h := &Host{ID: words[0], State: Ready, Labels: map[string]string{}, Drivers: []string{"qemu/tcg"}}
	for _, w := range words[1:] {
		k, v, named := strings.Cut(w, "=")
		label, isLabel := strings.CutPrefix(k, "label:")
		switch {
		case !named:
			h.Capacity = parseResources(t, w)
		case isLabel:
			h.Labels[label] = v
		case k == "used":
			h.Used = parseResources(t, v)
		case k == "zone":
			h.Zone = v
		case k == "cpu":
			h.CPUFeatures = strings.Split(v, ",")
		case k == "driver":
			h.Drivers = strings.Split(v, ",")
		case k == "machine":
			h.Machines = strings.Split(v, ",")
		case k == "kernel":
			h.KernelID = v
		case k == "has":
			h.Snapshots = strings.Split(v, ",")
		case k == "state":
			h.State = map[string]State{"lost": Lost, "cordoned": Cordoned, "draining": Draining}[v]
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	return h
}

func parseResources(t *testing.T, s string) Resources {
	var n [4]int64
	for i, x := range strings.Split(s, "/") {
		v, err := strconv.ParseInt(x, 10, 64)
		if err != nil || i >= len(n) {
			t.Fatalf("resources must be like 8/16384/65536/10, got %q", s)
		}
		n[i] = v
	}
	return Resources{n[0], n[1], n[2], n[3]}
}

func parseRequest(t *testing.T, d *datadriven.TestData) *Request {
	r := &Request{SandboxID: "sb_1", Labels: map[string]string{}}
	for _, a := range d.CmdArgs {
		v := strings.Join(a.Vals, ",")
		label, isLabel := strings.CutPrefix(a.Key, "label:")
		switch {
		case isLabel:
			r.Labels[label] = v
		case a.Key == "ask":
			r.Resources = parseResources(t, v)
		case a.Key == "snapshot":
			r.SnapshotID = v
		case a.Key == "cpu":
			r.CPUFeatures = a.Vals
		case a.Key == "driver":
			r.Driver = v
		case a.Key == "machine":
			r.Machine = v
		case a.Key == "kernel":
			r.KernelID = v
		case a.Key == "host":
			r.HostID = v
		case a.Key == "exclude":
			r.Exclude = a.Vals
		case a.Key == "spread":
			r.SpreadKey = v
		case a.Key == "apart":
			r.Apart, r.ApartFrom = true, a.Vals
		default:
			t.Fatalf("%s: unknown argument %s", d.Pos, a.Key)
		}
	}
	return r
}
