package plan

import "maps"

// group is where the sandboxes of one spread key are.
type group struct {
	rows  map[int32]int
	zones map[string]int
	zone  map[int32]string // of each row in rows, as it was when the first was counted
}

func (g *group) clone() *group {
	return &group{rows: maps.Clone(g.rows), zones: maps.Clone(g.zones), zone: maps.Clone(g.zone)}
}

// count changes how many sandboxes of a key are on a host.
func (v *View) count(row int, spreadKey string, by int) {
	if spreadKey == "" {
		return
	}
	g := v.spread[spreadKey]
	if g == nil {
		if by < 0 {
			return
		}
		g = &group{rows: map[int32]int{}, zones: map[string]int{}, zone: map[int32]string{}}
		v.spread[spreadKey] = g
	}
	r := int32(row)
	if by < 0 && g.rows[r] == 0 {
		return // The host was forgotten meanwhile.
	}
	if g.rows[r] == 0 {
		g.zone[r] = v.hosts[row].Zone
	}
	g.rows[r] += by
	g.zones[g.zone[r]] += by
	if g.rows[r] <= 0 && g.drop(r) {
		delete(v.spread, spreadKey)
	}
}

// drop forgets a row, and tells whether nothing is left.
func (g *group) drop(row int32) bool {
	if z, ok := g.zone[row]; ok {
		if g.zones[z] -= g.rows[row]; g.zones[z] <= 0 {
			delete(g.zones, z)
		}
		delete(g.rows, row)
		delete(g.zone, row)
	}
	return len(g.rows) == 0
}

// near is how many of a key are on a host and in its zone.
func (g *group) near(row int32, zone string) (onHost, inZone int) {
	if g == nil {
		return 0, 0
	}
	return g.rows[row], g.zones[zone]
}
