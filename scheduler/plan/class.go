package plan

import (
	"hash/maphash"
	"maps"
	"slices"
)

// maxClasses bounds what is remembered; requests of one deployment have a few.
const maxClasses = 256

// class is the hosts that pass the filters on what rarely changes, for requests that ask for the same of it.
type class struct {
	driver   string
	machine  string
	features []string
	labels   map[string]string

	rows  bitset
	list  []int32 // rows in order, unless stale
	stale bool
}

// admits tells whether a host is of the class.
func (c *class) admits(h *Host) bool {
	return h.drives(c.driver) && h.loads(c.machine) && h.labelled(c.labels) && h.features(c.features)
}

// put notes whether a row is of the class.
func (c *class) put(row int32, is bool) {
	if c.rows.has(row) != is {
		c.rows.set(row, is)
		c.stale = true
	}
}

// is tells whether a request asks for what the class is made for.
func (c *class) is(r *Request) bool {
	return c.driver == r.Driver && c.machine == r.Machine && slices.Equal(c.features, r.CPUFeatures) && maps.Equal(c.labels, r.Labels)
}

var seed = maphash.MakeSeed()

// key is a hash of what a request asks for; that of labels does not depend on their order.
func key(r *Request) uint64 {
	k := maphash.String(seed, r.Driver)*0x9E3779B97F4A7C15 + maphash.String(seed, r.Machine)
	for _, f := range r.CPUFeatures {
		k = k*0x9E3779B97F4A7C15 + maphash.String(seed, f)
	}
	for name, value := range r.Labels {
		k += (maphash.String(seed, name) | 1) * (maphash.String(seed, value) + 0x9E3779B97F4A7C15)
	}
	return k
}

// class finds the request's class, and makes it if there is none yet.
func (v *View) class(r *Request) *class {
	k := key(r)
	c := v.classes[k]
	if c == nil || !c.is(r) {
		if len(v.classes) >= maxClasses {
			clear(v.classes)
		}
		c = &class{driver: r.Driver, machine: r.Machine, features: slices.Clone(r.CPUFeatures), labels: maps.Clone(r.Labels), stale: true}
		for row, h := range v.hosts {
			if h != nil && c.admits(h) {
				c.rows.set(int32(row), true)
			}
		}
		v.classes[k] = c
	}
	if c.stale {
		c.list, c.stale = c.rows.appendTo(c.list[:0]), false
	}
	return c
}
