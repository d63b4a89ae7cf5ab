package access

import (
	"context"
	"crypto/sha256"
	"maps"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
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
	// maxKeys bounds what is kept of keys that are good. Beyond it those that were not asked about for grace go, and where there are none all.
	maxKeys = 16384
	// maxUnknown bounds what is kept of what is no key. Anyone can send that, so it has a place of its own and takes none from keys: beyond it, all of it goes.
	maxUnknown = 4096
	// maxSecret bounds what is taken for a key, bytes; Covey's have 47.
	maxSecret = 256
)

// Caller is whom a key stands for.
type Caller struct {
	Tenant, KeyID string
	Scopes        []string
}

// Attempt is a call that is to be let in.
type Attempt struct {
	// Method is gRPC's full name, or method and route of a request by REST. It is asked for when the call is refused.
	Method func() string
	// From is where it came from, host:port.
	From string
}

func attempt(method string) Attempt { return Attempt{Method: func() string { return method }} }

// Refusal is a call that was not let in.
type Refusal struct {
	Attempt
	// Caller is known but where the key is not good.
	Caller Caller
	// Key is the beginning of what was sent for a key, enough to recognise one's own and useless for all else; empty where nothing was.
	Key string
	Err error
}

// Lookup asks whose key a secret is. An unknown or revoked key is UNAUTHENTICATED.
type Lookup func(ctx context.Context, secret string) (Caller, error)

// Keys knows callers by their keys.
type Keys struct {
	// Limit, if not nil, tells whether a call of a caller may begin now.
	Limit func(Caller) error
	// OnRefusal, if not nil, is told of every call that is not let in, and must not block.
	OnRefusal func(ctx context.Context, r Refusal)

	lookup  Lookup
	now     func() time.Time
	recheck time.Duration

	mu      sync.Mutex    // guards both, which have no secret in common
	known   map[id]answer // keys that are good
	unknown map[id]answer // what is no key, or one no more
}

// id is the SHA-256 of a secret.
type id = [sha256.Size]byte

type answer struct {
	caller Caller
	err    error // UNAUTHENTICATED, or nil
	at     time.Time
}

// New makes a Keys.
func New(lookup Lookup) *Keys {
	return &Keys{lookup: lookup, now: time.Now, recheck: recheck, known: map[id]answer{}, unknown: map[id]answer{}}
}

type callerKey struct{}

// From returns the caller that Admit put into a context.
func From(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Identify finds the caller of a key and returns the context to go on with, which has the caller and the tenant and ends when the key is revoked;
// or a status that says why not. The context given must end with the call.
func (k *Keys) Identify(ctx context.Context, secret string, a Attempt) (context.Context, error) {
	if secret == "" {
		err := apierr.E(codes.Unauthenticated, "MISSING_API_KEY", `no API key: send it as "Authorization: Bearer cvy_..." or "X-API-Key: cvy_..."`)
		k.refused(ctx, Refusal{Attempt: a, Err: err})
		return nil, err
	}
	caller, err := k.find(ctx, secret)
	if err != nil {
		if status.Code(err) == codes.Unauthenticated {
			k.refused(ctx, Refusal{Attempt: a, Key: beginning(secret), Err: err})
		}
		return nil, err
	}
	if ctx, err = k.Admit(ctx, caller, a); err != nil {
		return nil, err
	}
	return k.tie(ctx, secret), nil
}

// Admit is As for a caller whose rate is not used up.
func (k *Keys) Admit(ctx context.Context, c Caller, a Attempt) (context.Context, error) {
	if k.Limit != nil {
		if err := k.Limit(c); err != nil {
			k.refused(ctx, Refusal{Attempt: a, Caller: c, Err: err})
			return nil, err
		}
	}
	return As(ctx, c), nil
}

func (k *Keys) refused(ctx context.Context, r Refusal) {
	if k.OnRefusal != nil {
		k.OnRefusal(ctx, r)
	}
}

const (
	// keyPrefix begins all keys.
	keyPrefix = "cvy_"
	// shown is how much of what follows it is shown, of 43 characters.
	shown = 4
)

// beginning is what may be shown of something that was sent for a key. What is not like a key may be a secret of another kind.
func beginning(secret string) string {
	rest, ok := strings.CutPrefix(secret, keyPrefix)
	if !ok || len(rest) < 4*shown {
		return "not like a key"
	}
	return keyPrefix + rest[:shown] + "..."
}

// As returns the context of what is done for a caller that is known by other means than a key.
func As(ctx context.Context, c Caller) context.Context {
	return tenant.With(context.WithValue(ctx, callerKey{}, c), c.Tenant)
}

// Check is nil if the context's caller may call a method, else a status that says what is missing.
func (k *Keys) Check(ctx context.Context, fullMethod string) error {
	caller, _ := From(ctx)
	needed := ScopeOf(fullMethod)
	if may(caller.Scopes, needed) {
		return nil
	}
	return k.deny(ctx, fullMethod, caller, needed)
}

// CheckScope is Check for what is no method.
func (k *Keys) CheckScope(ctx context.Context, what, needed string) error {
	if caller, _ := From(ctx); !may(caller.Scopes, needed) {
		return k.deny(ctx, what, caller, needed)
	}
	return nil
}

func (k *Keys) deny(ctx context.Context, what string, caller Caller, needed string) error {
	err := apierr.E(codes.PermissionDenied, "MISSING_SCOPE", "the API key lacks the scope "+needed+"; it has "+strings.Join(caller.Scopes, ", "),
		"needed", needed, "key_id", caller.KeyID)
	k.refused(ctx, Refusal{Attempt: attempt(what), Caller: caller, Err: err})
	return err
}

func (k *Keys) find(ctx context.Context, secret string) (Caller, error) {
	if len(secret) > maxSecret {
		return Caller{}, apierr.E(codes.Unauthenticated, "INVALID_API_KEY", "the API key is unknown or was revoked")
	}
	id := sha256.Sum256([]byte(secret))
	a, ok := k.kept(id)
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

func (k *Keys) kept(i id) (answer, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a, ok := k.known[i]; ok {
		return a, true
	}
	a, ok := k.unknown[i]
	return a, ok
}

func (k *Keys) keep(i id, a answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, i)
	delete(k.unknown, i)
	if a.err != nil {
		if len(k.unknown) >= maxUnknown {
			clear(k.unknown)
		}
		k.unknown[i] = a
		return
	}
	if len(k.known) >= maxKeys {
		maps.DeleteFunc(k.known, func(_ id, old answer) bool { return a.at.Sub(old.at) >= grace })
	}
	if len(k.known) >= maxKeys {
		clear(k.known)
	}
	k.known[i] = a
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
	a := attempt(fullMethod)
	if p, ok := peer.FromContext(ctx); ok {
		a.From = p.Addr.String()
	}
	ctx, err := k.Identify(ctx, Secret(md.Get("authorization"), md.Get("x-api-key")), a)
	if err != nil {
		return nil, err
	}
	if err := k.Check(ctx, fullMethod); err != nil {
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
