package ports

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Grant is what a token admits to.
type Grant struct {
	// Tenant and KeyID are whose key the token was made with.
	Tenant, KeyID string
	Port          Port
	// Expires is in whole seconds.
	Expires time.Time
}

// Errors of Open.
var (
	ErrToken   = errors.New("the port's token is not one of this gateway's, or is for another port")
	ErrExpired = errors.New("the port's token has expired")
)

// prefix begins all tokens. The digit is the version of what follows.
const prefix = "cpt1_"

// Signer makes tokens and opens them.
type Signer struct {
	secret []byte
	now    func() time.Time
}

// NewSigner makes a Signer. Gateways with the same secret accept each other's tokens; without a secret, tokens end with the gateway.
func NewSigner(secret string) *Signer {
	s := &Signer{secret: []byte(secret), now: time.Now}
	if secret == "" {
		s.secret = make([]byte, 32)
		_, _ = rand.Read(s.secret) // It never fails.
	}
	return s
}

// Token makes the token of a grant: its fields separated by line feeds, and their HMAC-SHA256, both in base64.
func (s *Signer) Token(g Grant) string {
	body := strings.Join([]string{g.Tenant, g.KeyID, g.Port.Sandbox, strconv.Itoa(g.Port.Number), strconv.FormatInt(g.Expires.Unix(), 10)}, "\n")
	enc := base64.RawURLEncoding
	return prefix + enc.EncodeToString([]byte(body)) + "." + enc.EncodeToString(s.mac(body))
}

func (s *Signer) mac(body string) []byte {
	h := hmac.New(sha256.New, s.secret)
	h.Write([]byte(prefix + body))
	return h.Sum(nil)
}

// Open reads a token that must be for a port.
func (s *Signer) Open(token string, p Port) (Grant, error) {
	rest, ok := strings.CutPrefix(token, prefix)
	left, right, dot := strings.Cut(rest, ".")
	body, err := base64.RawURLEncoding.DecodeString(left)
	mac, macErr := base64.RawURLEncoding.DecodeString(right)
	if !ok || !dot || err != nil || macErr != nil || !hmac.Equal(mac, s.mac(string(body))) {
		return Grant{}, ErrToken
	}
	f := strings.Split(string(body), "\n")
	if len(f) != 5 {
		return Grant{}, ErrToken
	}
	number, _ := Number(f[3])
	unix, err := strconv.ParseInt(f[4], 10, 64)
	g := Grant{Tenant: f[0], KeyID: f[1], Port: Port{f[2], number}, Expires: time.Unix(unix, 0)}
	switch {
	case err != nil || g.Port != p:
		return Grant{}, ErrToken
	case !s.now().Before(g.Expires):
		return Grant{}, ErrExpired
	}
	return g, nil
}
