package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Scopes of keys.
const (
	ScopeRead  = "read"
	ScopeWrite = "write"
	ScopeAdmin = "admin"
)

var scopes = []string{ScopeRead, ScopeWrite, ScopeAdmin}

// Key is an API key without its secret, of which only the SHA-256 is kept: it has 256 bits of entropy, so that neither salt
// nor a slow hash would add anything.
type Key struct {
	ID, Tenant, Name                    string
	Scopes                              []string
	CreateTime, LastUseTime, RevokeTime time.Time
}

// BootstrapKey is the name of the key that is adopted from a file. While the file may be there the key is not forgotten, revoked or not: it would be
// made anew.
const BootstrapKey = "bootstrap"

const (
	secretPrefix = "cvy_"
	secretBytes  = 32
)

var (
	secretForm = regexp.MustCompile(`^cvy_[A-Za-z0-9_-]{43}$`)
	tenantID   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
)

func newSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b) // Never fails.
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// Keys manages API keys.
type Keys struct{ store KeyStore }

// NewKeys makes a key manager.
func NewKeys(store KeyStore) *Keys { return &Keys{store: store} }

// Create makes a key for a tenant and returns its secret, which is kept nowhere.
func (k *Keys) Create(ctx context.Context, tenant, name string, scope []string) (Key, string, error) {
	if n := utf8.RuneCountInString(name); n < 1 || n > 63 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Key{}, "", field("name", "must be 1 to 63 printable characters, got %q", clip(name))
	}
	if !tenantID.MatchString(tenant) {
		return Key{}, "", field("tenant_id", "must be 1 to 63 characters of [a-z0-9-], got %q", clip(tenant))
	}
	if len(scope) == 0 {
		scope = []string{ScopeRead, ScopeWrite}
	}
	for _, s := range scope {
		if !slices.Contains(scopes, s) {
			return Key{}, "", field("scopes", "must be of %s, got %q", strings.Join(scopes, ", "), clip(s))
		}
	}
	scope = slices.Compact(slices.Sorted(slices.Values(scope)))
	secret := newSecret()
	key, err := k.store.InsertKey(ctx, Key{ID: newID(keyPrefix), Tenant: tenant, Name: name, Scopes: scope}, hashSecret(secret))
	return key, secret, err
}

// List reads a page of a tenant's keys, newest first, and the token of the next page, empty after the last.
func (k *Keys) List(ctx context.Context, tenant string, pageSize uint32, token string) ([]Key, string, error) {
	if err := checkPageSize(&pageSize); err != nil {
		return nil, "", err
	}
	filter := (&ListRequest{}).filterHash("keys of " + tenant)
	from, err := pageFrom(token, keyID, filter)
	if err != nil {
		return nil, "", err
	}
	rows, err := k.store.Keys(ctx, tenant, from, int(pageSize)+1)
	if err != nil {
		return nil, "", err
	}
	return cutPage(rows, pageSize, func(k Key) pageToken { return pageToken{k.CreateTime, k.ID, filter} })
}

// Revoke ends a tenant's key; ending it twice is no error.
func (k *Keys) Revoke(ctx context.Context, tenant, id string) (Key, error) {
	if !keyID.MatchString(id) {
		return Key{}, field("key_id", `must be "key_" and 26 characters, got %q`, clip(id))
	}
	return k.store.RevokeKey(ctx, tenant, id)
}

// Authenticate finds whose key a secret is.
func (k *Keys) Authenticate(ctx context.Context, secret string) (Key, error) {
	unknown := &Error{Kind: Unauthenticated, Reason: "INVALID_API_KEY", Message: "the API key is unknown or was revoked"}
	if !secretForm.MatchString(secret) {
		return Key{}, unknown
	}
	key, err := k.store.KeyByHash(ctx, hashSecret(secret))
	if errors.Is(err, NotFound) || err == nil && !key.RevokeTime.IsZero() {
		return Key{}, unknown
	}
	return key, err
}

// Adopt makes a secret that is kept elsewhere a key with all scopes, unless it is one already.
func (k *Keys) Adopt(ctx context.Context, tenant, name, secret string) error {
	if !secretForm.MatchString(secret) {
		return field("api_key", `must be "cvy_" and 43 characters of [A-Za-z0-9_-]`)
	}
	if _, err := k.store.KeyByHash(ctx, hashSecret(secret)); !errors.Is(err, NotFound) {
		return err
	}
	_, err := k.store.InsertKey(ctx, Key{ID: newID(keyPrefix), Tenant: tenant, Name: name, Scopes: scopes}, hashSecret(secret))
	if errors.Is(err, Exists) {
		return nil
	}
	return err
}

// NewSecret makes the secret of a key to be adopted.
func NewSecret() string { return newSecret() }
