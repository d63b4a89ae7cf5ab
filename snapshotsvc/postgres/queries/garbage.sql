-- name: ListOrphans :many
SELECT * FROM snapshot.orphan ORDER BY id LIMIT @row_limit FOR UPDATE SKIP LOCKED;

-- name: LockObjects :many
-- Objects that a registration is about to name are locked by it, and left for the next time.
SELECT key FROM snapshot.object WHERE key = ANY (sqlc.arg('keys')::text[]) ORDER BY key FOR UPDATE SKIP LOCKED;

-- name: ListKnown :many
SELECT key FROM snapshot.object WHERE key = ANY (sqlc.arg('keys')::text[]);

-- name: DeleteUnnamed :many
-- Its snapshot of the database is taken after the locks, so it sees every reference that was made before them.
DELETE FROM snapshot.object o
WHERE o.key = ANY (sqlc.arg('keys')::text[]) AND NOT EXISTS (SELECT 1 FROM snapshot.reference r WHERE r.key = o.key)
RETURNING o.path;

-- name: DeleteOrphans :exec
DELETE FROM snapshot.orphan WHERE id = ANY (sqlc.arg('ids')::bigint[]);

-- name: InsertGarbage :exec
INSERT INTO snapshot.garbage (path) SELECT unnest(sqlc.arg('paths')::text[]) ON CONFLICT DO NOTHING;

-- name: DiscardPath :exec
INSERT INTO snapshot.garbage (path)
SELECT sqlc.arg('path')::text WHERE NOT EXISTS (SELECT 1 FROM snapshot.object WHERE path = sqlc.arg('path')::text)
ON CONFLICT DO NOTHING;

-- name: ListGarbage :many
SELECT path FROM snapshot.garbage ORDER BY since, path LIMIT @row_limit;

-- name: PostponeGarbage :exec
UPDATE snapshot.garbage SET since = now() WHERE path = @path;

-- name: ForgetGarbage :exec
DELETE FROM snapshot.garbage WHERE path = @path;

-- name: ListUnknown :many
SELECT p::text AS path FROM unnest(sqlc.arg('paths')::text[]) AS p
WHERE NOT EXISTS (SELECT 1 FROM snapshot.object o WHERE o.path = p) AND NOT EXISTS (SELECT 1 FROM snapshot.garbage g WHERE g.path = p);
