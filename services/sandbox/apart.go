package sandbox

import "context"

// checkAntiAffinity checks a name; empty means none.
func checkAntiAffinity(name string) error {
	if name != "" && !templateName.MatchString(name) {
		return field("anti_affinity", "must be 1 to 63 characters of [a-z0-9._-], or empty, got %q", clip(name))
	}
	return nil
}

// keepApart tells a placement of which hosts the sandbox must keep off. The scheduler counts what it has placed, but forgets that with its life
// and knows nothing of other schedulers' placements; the rows know all but what is being placed now, which Change.Apart finds.
func (s *Service) keepApart(ctx context.Context, sb Sandbox, place *PlaceRequest) error {
	if sb.AntiAffinity == "" {
		return nil
	}
	rows, err := s.store.Apart(ctx, sb.Tenant, sb.AntiAffinity)
	if err != nil {
		return err
	}
	place.SpreadKey, place.Apart, place.ApartFrom = "apart/"+sb.AntiAffinity, true, nil
	for _, o := range rows {
		if o.ID != sb.ID {
			place.ApartFrom = append(place.ApartFrom, o.HostID)
		}
	}
	return nil
}
