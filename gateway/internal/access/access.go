package access

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// Metadata in which services behind the gateway learn of the caller's key: its scopes, separated by commas, and its id.
const (
	ScopesKey = "covey-scopes"
	KeyIDKey  = "covey-key-id"
)

const (
	// fresh is how long an answer about a key is believed.
	fresh = 2 * time.Second
	// grace is how long it is believed where the service cannot be asked again.
	grace = 30 * time.Second
	// maxKeys bounds the cache: beyond it, everything is asked for again.
	maxKeys = 16384
	// maxSecret bounds what is taken for a key, bytes; Covey's have 47.
	maxSecret = 256
)

// Caller is whom a key stands for.
type Caller struct {
	Tenant, KeyID string
	Scopes        []string
}

// Lookup asks whose key a secret is. An unknown or revoked key is UNAUTHENTICATED.
type Lookup func(ctx context.Context, secret string) (Caller, error)

// Keys knows callers by their keys.
type Keys struct {
	// Limit, if not nil, tells whether a call of a caller may begin now.
	Limit func(Caller) error

	lookup  Lookup
	now     func() time.Time
	recheck time.Duration

	mu    sync.Mutex // guards known
	known map[[sha256.Size]byte]answer
}

type answer struct {
	caller Caller
	err    error // UNAUTHENTICATED, or nil
	at     time.Time
}

// New makes a Keys.
func New(lookup Lookup) *Keys {
	return &Keys{lookup: lookup, now: time.Now, recheck: recheck, known: map[[sha256.Size]byte]answer{}}
}

type callerKey struct{}

// From returns the caller that Admit put into a context.
func From(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Identify finds the caller of a key and returns the context to go on with, which has the caller and the tenant and ends when the key is revoked;
// or a status that says why not. The context given must end with the call.
func (k *Keys) Identify(ctx context.Context, secret string) (context.Context, error) {
	if secret == "" {
		return nil, apierr.E(codes.Unauthenticated, "MISSING_API_KEY", `no API key: send it as "Authorization: Bearer cvy_..." or "X-API-Key: cvy_..."`)
	}
	caller, err := k.find(ctx, secret)
	if err != nil {
		return nil, err
	}
	if ctx, err = k.Admit(ctx, caller); err != nil {
		return nil, err
	}
	return k.tie(ctx, secret), nil
}

// Admit is As for a caller whose rate is not used up.
func (k *Keys) Admit(ctx context.Context, c Caller) (context.Context, error) {
	if k.Limit != nil {
		if err := k.Limit(c); err != nil {
			return nil, err
		}
	}
	return As(ctx, c), nil
}

// As returns the context of what is done for a caller that is known by other means than a key.
func As(ctx context.Context, c Caller) context.Context {
	return tenant.With(context.WithValue(ctx, callerKey{}, c), c.Tenant)
}

// Check is nil if the context's caller may call a method, else a status that says what is missing.
func Check(ctx context.Context, fullMethod string) error {
	caller, _ := From(ctx)
	needed := ScopeOf(fullMethod)
	if may(caller.Scopes, needed) {
		return nil
	}
	return apierr.E(codes.PermissionDenied, "MISSING_SCOPE", "the API key lacks the scope "+needed+"; it has "+strings.Join(caller.Scopes, ", "),
		"needed", needed, "key_id", caller.KeyID)
}

func (k *Keys) find(ctx context.Context, secret string) (Caller, error) {
	if len(secret) > maxSecret {
		return Caller{}, apierr.E(codes.Unauthenticated, "INVALID_API_KEY", "the API key is unknown or was revoked")
	}
	id := sha256.Sum256([]byte(secret))
	k.mu.Lock()
	a, ok := k.known[id]
	k.mu.Unlock()
	age := k.now().Sub(a.at)
	if ok && age < fresh {
		return a.caller, a.err
	}
	asked := k.now()
	caller, err := k.lookup(ctx, secret)
	switch status.Code(err) {
	case codes.OK, codes.Unauthenticated:
		k.keep(id, answer{caller, err, asked})
	case codes.Unavailable, codes.DeadlineExceeded:
		if ok && a.err == nil && age < grace && ctx.Err() == nil {
			return a.caller, nil
		}
	}
	return caller, err
}

func (k *Keys) keep(id [sha256.Size]byte, a answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.known) >= maxKeys {
		clear(k.known)
	}
	k.known[id] = a
}

// Forget asks again about a key at its next use.
func (k *Keys) Forget(keyID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, a := range k.known {
		if a.caller.KeyID == keyID {
			delete(k.known, id)
		}
	}
}

// Auth is the chassis's hook: it admits native gRPC calls by their metadata, and takes out of it what only the mesh may say.
func (k *Keys) Auth(ctx context.Context, fullMethod string) (context.Context, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ctx, err := k.Identify(ctx, Secret(md.Get("authorization"), md.Get("x-api-key")))
	if err != nil {
		return nil, err
	}
	if err := Check(ctx, fullMethod); err != nil {
		return nil, err
	}
	own := metadata.MD{}
	for name, values := range md {
		if !strings.HasPrefix(name, "covey-") {
			own[name] = values
		}
	}
	return metadata.NewIncomingContext(ctx, own), nil
}

// Secret finds the API key in the values of the headers Authorization and X-API-Key.
func Secret(authorization, apiKey []string) string {
	if len(authorization) > 0 {
		scheme, secret, _ := strings.Cut(authorization[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(secret)
		}
	}
	if len(apiKey) > 0 {
		return strings.TrimSpace(apiKey[0])
	}
	return ""
}
