// Package access decides who calls and what they may do.
//
// A caller is known by its API key, sent as "Authorization: Bearer cvy_..." or "X-API-Key: cvy_...". Its scopes are those of the key:
// read covers what changes nothing, write what makes, uses and ends sandboxes and snapshots, admin hosts and keys. Scopes do not imply each other,
// but that write covers read and admin covers both.
//
// What the sandbox service said about a key is believed for a few seconds. A key that is revoked through this gateway ends at once, one that is
// revoked through another within that time. While the sandbox service cannot be asked, what it said last holds for half a minute more, so that
// its restart does not cut the data plane.
//
// Chosen: asking the service that owns the keys, with a short cache. Rejected: signed tokens, which cannot be revoked before they end. What is no key is kept
// apart from keys, and bounded by itself: in one cache for both, a caller without a key could have all others' asked about again.
package access
