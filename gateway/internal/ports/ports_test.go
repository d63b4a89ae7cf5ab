package ports

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const sandbox = "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"

func TestHostNamesFindTheirPortInAnyCase(t *testing.T) {
	want := Port{sandbox, 8000}
	for host, ok := range map[string]bool{
		want.Host("covey.localhost"):                                true,
		want.Host("covey.localhost") + ":7070":                      true,
		strings.ToUpper(want.Host("covey.localhost")):               true,
		"8000-sb-01arz3ndektsv4rrffq69g5fav.covey.localhost":        true,
		"8000-sb_01arz3ndektsv4rrffq69g5fav.elsewhere":              false,
		"0-sb_01arz3ndektsv4rrffq69g5fav.covey.localhost":           false,
		"70000-sb_01arz3ndektsv4rrffq69g5fav.covey.localhost":       false,
		"8000-sb_01arz3ndektsv4rrffq69g5fa.covey.localhost":         false,
		"8000-sb_01arz3ndektsv4rrffq69g5fav.x.covey.localhost":      false,
		"x8000-sb_01arz3ndektsv4rrffq69g5fav.covey.localhost":       false,
		"8000-sb_01arz3ndektsv4rrffq69g5fav.covey.localhost.:7070":  false,
		"8000-sb_01arz3ndektsv4rrffq69g5fav.notcovey.localhost:700": false,
	} {
		if got, found := FromHost(host, "covey.localhost"); found != ok || ok && got != want {
			t.Errorf("%s: %v, %v", host, got, found)
		}
	}
}

func TestATokenAdmitsToItsPortUntilItExpiresAndToNothingElse(t *testing.T) {
	s := NewSigner("")
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	g := Grant{"default", "key_1", Port{sandbox, 80}, time.Unix(1060, 0)}
	token := s.Token(g)
	if got, err := s.Open(token, g.Port); err != nil || got != g {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		signer *Signer
		token  string
		port   Port
	}{
		"another port":    {s, token, Port{sandbox, 81}},
		"another sandbox": {s, token, Port{"sb_01ARZ3NDEKTSV4RRFFQ69G5FAW", 80}},
		"another gateway": {NewSigner(""), token, g.Port},
		"cut":             {s, token[:len(token)-1], g.Port},
		"empty":           {s, "", g.Port},
		"no signature":    {s, strings.SplitAfter(token, ".")[0], g.Port},
	} {
		if _, err := c.signer.Open(c.token, c.port); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	now = g.Expires
	if _, err := s.Open(token, g.Port); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: %v", err)
	}
}
