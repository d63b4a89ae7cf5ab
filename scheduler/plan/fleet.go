package plan

import (
	"maps"
	"math/bits"
	"slices"
)

// Fleet is what is known of all hosts, and how it changes. It is not safe for concurrent use: its owner guards it.
type Fleet struct {
	view View
	free []int32 // rows without a host
}

// View is a Fleet at one moment. Functions of this package only read it, save for the classes that they remember in it.
type View struct {
	// Columns, one row a host.
	hosts []*Host // as last told, not changed once here; nil where there is none
	state []State
	cap   []Resources
	left  []Resources      // capacity less what the host says is used, less what is reserved; may be negative
	held  []Resources      // what is reserved
	why   map[int32]string // why and since when a row's host is lost, to follow "it is lost: "; only of rows of which that was said

	byID    map[string]int32
	holders map[string][]int32 // rows by snapshot, in order; nil in a frozen view
	spread  map[string]*group
	classes map[uint64]*class
}

// NewFleet makes an empty fleet.
func NewFleet() *Fleet {
	return &Fleet{view: View{
		byID: map[string]int32{}, holders: map[string][]int32{}, spread: map[string]*group{}, classes: map[uint64]*class{}, why: map[int32]string{},
	}}
}

// View is the fleet as it is now. It is valid until the fleet is changed.
func (f *Fleet) View() *View { return &f.view }

// Freeze copies the fleet as it is now. The copy stays as it is.
func (f *Fleet) Freeze() *View {
	v := &f.view
	byID := make(map[string]int32, len(v.byID))
	for id, row := range v.byID {
		byID[id] = row
	}
	spread := make(map[string]*group, len(v.spread))
	for key, g := range v.spread {
		spread[key] = g.clone()
	}
	return &View{
		hosts: slices.Clone(v.hosts), state: slices.Clone(v.state), cap: slices.Clone(v.cap), left: slices.Clone(v.left),
		held: slices.Clone(v.held), why: maps.Clone(v.why), byID: byID, spread: spread, classes: map[uint64]*class{},
	}
}

// Len is the number of hosts.
func (v *View) Len() int { return len(v.byID) }

// Row finds a host.
func (v *View) Row(id string) (row int, known bool) {
	r, ok := v.byID[id]
	return int(r), ok
}

// Host is the host of a row, with its state as it is now.
func (v *View) Host(row int) Host {
	h := *v.hosts[row]
	h.State = v.state[row]
	return h
}

// ID is the id of a row's host, Address where its agent is, and State whether it takes sandboxes.
func (v *View) ID(row int) string      { return v.hosts[row].ID }
func (v *View) Address(row int) string { return v.hosts[row].Address }
func (v *View) State(row int) State    { return v.state[row] }

// Capacity is what a row's host offers in all, and Left what of it is neither used nor reserved; Left may be negative.
func (v *View) Capacity(row int) Resources { return v.cap[row] }
func (v *View) Left(row int) Resources     { return v.left[row] }

// Held is what is reserved on a host.
func (v *View) Held(row int) Resources { return v.held[row] }

// Rows are the rows of all hosts, by id.
func (v *View) Rows() []int {
	rows := make([]int, 0, len(v.byID))
	for _, r := range v.byID {
		rows = append(rows, int(r))
	}
	slices.SortFunc(rows, func(a, b int) int { return compare(v.hosts[a].ID, v.hosts[b].ID) })
	return rows
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Put adds a host or takes over what is now known of it, and returns its row. The fleet keeps h, which must not change any more.
func (f *Fleet) Put(h *Host) int {
	v := &f.view
	row, known := v.byID[h.ID]
	if !known {
		row = f.newRow()
		v.byID[h.ID] = row
	}
	old := v.hosts[row]
	v.hosts[row], v.state[row], v.cap[row] = h, h.State, h.Capacity
	v.left[row] = h.Capacity.Minus(h.Used).Minus(v.held[row])
	v.hold(row, old, h)
	if old == nil || !sameKind(old, h) {
		for _, c := range v.classes {
			c.put(row, c.admits(h))
		}
	}
	return int(row)
}

func (f *Fleet) newRow() int32 {
	if n := len(f.free); n > 0 {
		row := f.free[n-1]
		f.free = f.free[:n-1]
		return row
	}
	v := &f.view
	v.hosts = append(v.hosts, nil)
	v.state = append(v.state, Gone)
	v.cap = append(v.cap, Resources{})
	v.left = append(v.left, Resources{})
	v.held = append(v.held, Resources{})
	return int32(len(v.hosts) - 1)
}

// Remove forgets a host.
func (f *Fleet) Remove(id string) {
	v := &f.view
	row, known := v.byID[id]
	if !known {
		return
	}
	delete(v.byID, id)
	v.hold(row, v.hosts[row], &Host{})
	for _, c := range v.classes {
		c.put(row, false)
	}
	for key, g := range v.spread {
		if g.drop(row) {
			delete(v.spread, key)
		}
	}
	v.hosts[row], v.state[row] = nil, Gone
	delete(v.why, row)
	v.cap[row], v.left[row], v.held[row] = Resources{}, Resources{}, Resources{}
	f.free = append(f.free, row)
}

// SetState changes whether a host takes sandboxes.
func (f *Fleet) SetState(row int, s State) {
	f.view.state[row] = s
	delete(f.view.why, int32(row))
}

// SetLost makes a host lost. Why says the reason and since when, to follow "it is lost: ".
func (f *Fleet) SetLost(row int, why string) {
	f.view.state[row], f.view.why[int32(row)] = Lost, why
}

// Reserve takes room on a host. The spread key, if not empty, counts there until Release.
func (f *Fleet) Reserve(row int, r Resources, spreadKey string) {
	f.view.held[row] = f.view.held[row].Plus(r)
	f.view.left[row] = f.view.left[row].Minus(r)
	f.view.count(row, spreadKey, 1)
}

// Release gives room back that was reserved.
func (f *Fleet) Release(row int, r Resources, spreadKey string) {
	f.Count(row, spreadKey, -1)
	f.view.held[row] = f.view.held[row].Minus(r)
	f.view.left[row] = f.view.left[row].Plus(r)
}

// Count changes how many sandboxes of a spread key are on a host.
func (f *Fleet) Count(row int, spreadKey string, by int) { f.view.count(row, spreadKey, by) }

// sameKind tells whether two accounts of a host are in the same classes.
func sameKind(a, b *Host) bool {
	if len(a.Labels) != len(b.Labels) || !slices.Equal(a.CPUFeatures, b.CPUFeatures) || !slices.Equal(a.Drivers, b.Drivers) || !slices.Equal(a.Machines, b.Machines) {
		return false
	}
	for k, x := range a.Labels {
		if y, ok := b.Labels[k]; !ok || x != y {
			return false
		}
	}
	return true
}

// hold brings the rows by snapshot up to date; both lists are sorted.
func (v *View) hold(row int32, old, now *Host) {
	var before []string
	if old != nil {
		before = old.Snapshots
	}
	after := now.Snapshots
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0] < after[0]:
			v.unhold(row, before[0])
			before = before[1:]
		case len(before) == 0 || after[0] < before[0]:
			rows := v.holders[after[0]]
			at, _ := slices.BinarySearch(rows, row)
			v.holders[after[0]] = slices.Insert(rows, at, row)
			after = after[1:]
		default:
			before, after = before[1:], after[1:]
		}
	}
}

func (v *View) unhold(row int32, snapshot string) {
	rows := v.holders[snapshot]
	if at, found := slices.BinarySearch(rows, row); found {
		rows = slices.Delete(rows, at, at+1)
	}
	if len(rows) == 0 {
		delete(v.holders, snapshot)
	} else {
		v.holders[snapshot] = rows
	}
}

// bitset is a set of rows.
type bitset []uint64

func (b bitset) has(row int32) bool {
	w := int(row >> 6)
	return w < len(b) && b[w]&(1<<(row&63)) != 0
}

func (b *bitset) set(row int32, yes bool) {
	w := int(row >> 6)
	for w >= len(*b) {
		*b = append(*b, 0)
	}
	if yes {
		(*b)[w] |= 1 << (row & 63)
	} else {
		(*b)[w] &^= 1 << (row & 63)
	}
}

// appendTo appends the set's rows in order.
func (b bitset) appendTo(rows []int32) []int32 {
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			rows = append(rows, int32(w<<6+bits.TrailingZeros64(word)))
		}
	}
	return rows
}
