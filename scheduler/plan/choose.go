package plan

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

const (
	// ScanAll is the size of a fleet up to which all hosts are looked at.
	ScanAll = 16
	// choices is how many hosts are looked at in larger ones, and how many must fit for a scan to end.
	choices = 8
	// holderChoices is how many of those that have the snapshot are looked at too.
	holderChoices = 8
)

// Decision is the host that was chosen.
type Decision struct {
	Row   int
	Score float64
	// Looked is how many hosts were looked at.
	Looked int

	rating rating
	host   *Host
}

// Why says what counted for the host, and among how many it was the best.
func (d Decision) Why(r *Request) string {
	return fmt.Sprintf("it %s; the best of %s looked at", strings.Join(d.rating.sentences(r, d.host), ", "), plural(d.Looked, "host"))
}

// Choose finds a good host for a request; ok is false where none fits. The same view, request and random numbers give the same host.
func Choose(v *View, r *Request, rnd *rand.Rand) (d Decision, ok bool) {
	p := pick{v: v, r: r, group: v.spread[r.SpreadKey], class: v.class(r), holders: v.holders[r.SnapshotID], best: -1}
	switch list := p.class.list; {
	case r.HostID != "":
		if row, known := v.byID[r.HostID]; known && p.class.rows.has(row) {
			p.look(row)
		}
	case len(list) <= ScanAll:
		for _, row := range list {
			p.look(row)
		}
	default:
		p.sample(list, rnd)
		if p.best < 0 {
			p.scan(list, rnd)
		}
	}
	d = Decision{Row: int(p.best), Score: p.score, Looked: p.looked, rating: p.rating}
	if p.best < 0 {
		return d, false
	}
	d.host = v.hosts[p.best]
	return d, true
}

// pick is one choice under way.
type pick struct {
	v     *View
	r     *Request
	group *group
	class *class
	// holders are the rows that have the snapshot, in order; not known in a frozen view.
	holders []int32

	best   int32 // row; -1 while there is none
	score  float64
	rating rating // of the best
	looked int
	fitted int
}

// sample looks at some hosts at random, and at some that have the snapshot.
func (p *pick) sample(list []int32, rnd *rand.Rand) {
	n := uint64(len(list))
	for range choices {
		p.look(list[rnd.Uint64N(n)])
	}
	holders := p.holders
	if len(holders) <= holderChoices {
		for _, row := range holders {
			p.lookHolder(row)
		}
		return
	}
	for range holderChoices {
		p.lookHolder(holders[rnd.Uint64N(uint64(len(holders)))])
	}
}

func (p *pick) lookHolder(row int32) {
	if p.class.rows.has(row) {
		p.look(row)
	}
}

// scan looks at all hosts from a random one on until some fit.
func (p *pick) scan(list []int32, rnd *rand.Rand) {
	from := int(rnd.Uint64N(uint64(len(list))))
	for i := range list {
		if from+i == len(list) {
			from -= len(list)
		}
		p.look(list[from+i])
		if p.fitted == choices {
			return
		}
	}
}

// look takes a host of the class if it fits and is better than the best so far.
func (p *pick) look(row int32) {
	p.looked++
	v := p.v
	if v.state[row] != Ready || !p.r.Resources.Fits(&v.left[row]) || p.excluded(row) || p.crowded(row) {
		return
	}
	p.fitted++
	g := p.rate(row)
	if s := g.total(); p.best < 0 || s > p.score {
		p.best, p.score, p.rating = row, s, g
	}
}

// crowded tells whether a host has a sandbox that the one to be placed must be apart from.
func (p *pick) crowded(row int32) bool {
	if !p.r.Apart {
		return false
	}
	if p.group != nil && p.group.rows[row] > 0 {
		return true
	}
	for _, id := range p.r.ApartFrom {
		if p.v.hosts[row].ID == id {
			return true
		}
	}
	return false
}

func (p *pick) excluded(row int32) bool {
	for _, id := range p.r.Exclude {
		if p.v.hosts[row].ID == id {
			return true
		}
	}
	return false
}
