package chaos

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coveyhq/covey/deploy/mesh"
	"github.com/coveyhq/covey/deploy/meshtest"
)

func TestEachHostHasANetworkOfItsOwnThatNoGuestReachesAndThatLeadsNowhere(t *testing.T) {
	ctx := s.Start(t, time.Minute)
	sb := s.Create(t, ctx, onHost(source))
	var addrs []string
	for _, a := range s.Mesh.Backbone.Sites {
		addrs = append(addrs, a.String())
	}
	slots := map[string]string{}
	for site := range s.Mesh.Backbone.Sites {
		err := s.Mesh.Inside(site, func() error {
			links, err := net.Interfaces()
			if err != nil {
				return err
			}
			for _, l := range links {
				if strings.HasPrefix(l.Name, "cvy") {
					if other, twice := slots[l.Name]; twice {
						t.Errorf("%s and %s both have a link %s", site, other, l.Name)
					}
					slots[l.Name] = site
				}
			}
			routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
			for _, r := range routes {
				if r.Gw != nil {
					t.Errorf("a route leads out of %s: %s", site, r)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(slots) < 3 {
		t.Errorf("the hosts have slots %v", slots)
	}
	here, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range here {
		if n, ok := a.(*net.IPNet); ok && slices.Contains(addrs, n.IP.String()) {
			t.Errorf("%s is an address of this namespace", a)
		}
	}
	_, consul, err := net.SplitHostPort(s.Mesh.ConsulAddr)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Sh(t, ctx, sb.GetId(), fmt.Sprintf("for a in %s; do (nc -w 2 $a %s </dev/null >/dev/null 2>&1 && echo $a answers) & done; wait", strings.Join(addrs, " "), consul))
	if got != "" {
		t.Errorf("a guest reaches its mesh, whose Consul is at %s: %s", s.Mesh.ConsulAddr, got)
	}
	if got := s.Sh(t, ctx, sb.GetId(), "command -v nc"); got == "" {
		t.Error("the guest has nothing to look with")
	}
}

// reaches tells whether anything at a site answers another: a port that nobody listens on is refused.
func reaches(from, to string) bool {
	err := s.Mesh.Inside(from, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(s.Mesh.Backbone.Sites[to].String(), "1"), 500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	return err == nil || strings.Contains(err.Error(), "refused")
}

func TestASiteIsCutOffFromAllOrFromOne(t *testing.T) {
	ctx := s.Start(t, time.Minute)
	pairs := [][2]string{{source, target}, {target, source}, {source, third}, {third, mesh.RegistrySite}}
	check := func(what string, err error, want ...bool) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range pairs {
			if !want[i] && reaches(p[0], p[1]) {
				t.Errorf("%s: %s reaches %s", what, p[0], p[1])
			}
			if want[i] { // Addresses that did not answer are looked for again within a second or so.
				meshtest.Eventually(t, 5*time.Second, what+": "+p[0]+" reaches "+p[1], func() bool { return reaches(p[0], p[1]) })
			}
		}
	}
	check("at first", nil, true, true, true, true)
	check("apart", s.Mesh.Part(source, target), false, false, true, true)
	check("joined", s.Mesh.Join(source, target), true, true, true, true)
	check("cut off", s.Mesh.CutOff(source), false, false, false, true)
	check("mended", s.Mesh.Mend(ctx, source), true, true, true, true)
}
