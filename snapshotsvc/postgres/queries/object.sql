-- name: UpsertObjects :many
-- Makes the objects that are not known, and locks those that are until the transaction ends, in the order of their keys.
INSERT INTO snapshot.object (key, path, size_bytes, sha256)
SELECT unnest(sqlc.arg('keys')::text[]), unnest(sqlc.arg('paths')::text[]), unnest(sqlc.arg('sizes')::bigint[]), unnest(sqlc.arg('sums')::bytea[])
ORDER BY 1
ON CONFLICT (key) DO UPDATE SET size_bytes = object.size_bytes
RETURNING *;

-- name: GetObject :one
-- An object that a snapshot of the tenant names; the empty tenant means any.
SELECT o.* FROM snapshot.object o
WHERE o.key = @key
  AND EXISTS (SELECT 1 FROM snapshot.reference r JOIN snapshot.snapshot s ON s.id = r.snapshot_id
              WHERE r.key = o.key AND (sqlc.arg('tenant_id')::text = '' OR s.tenant_id = @tenant_id));

-- name: ListObjects :many
SELECT o.* FROM snapshot.object o JOIN snapshot.reference r ON r.key = o.key
WHERE r.snapshot_id = @snapshot_id ORDER BY o.key;

-- name: ListMissing :many
-- What a snapshot names and is not stored. Nobody changes that while the transaction lasts.
SELECT o.key, o.stored FROM snapshot.object o JOIN snapshot.reference r ON r.key = o.key
WHERE r.snapshot_id = @snapshot_id ORDER BY o.key FOR SHARE OF o;

-- name: SetStored :execrows
UPDATE snapshot.object SET stored = @stored WHERE path = @path;

-- name: BuildBytes :many
SELECT r.snapshot_id,
       coalesce(sum(o.size_bytes) FILTER (WHERE NOT other.there), 0)::bigint AS unique_bytes,
       coalesce(sum(o.size_bytes) FILTER (WHERE other.there), 0)::bigint AS shared_bytes
FROM snapshot.reference r
JOIN snapshot.object o ON o.key = r.key
CROSS JOIN LATERAL (SELECT EXISTS (SELECT 1 FROM snapshot.reference x WHERE x.key = r.key AND x.snapshot_id <> r.snapshot_id) AS there) other
WHERE r.snapshot_id = ANY (sqlc.arg('snapshot_ids')::text[]) AND r.build_id <> ''
GROUP BY r.snapshot_id;

-- name: ListBuilds :many
-- The builds of a snapshot, each with those snapshots of the tenant that name it.
SELECT r.build_id, r.role, o.size_bytes,
       ARRAY(SELECT x.snapshot_id FROM snapshot.reference x JOIN snapshot.snapshot s ON s.id = x.snapshot_id
             WHERE x.key = r.key AND s.tenant_id = @tenant_id AND s.state <> 'DELETING'
             ORDER BY s.create_time, x.snapshot_id LIMIT sqlc.arg('most')::int)::text[] AS named_by
FROM snapshot.reference r JOIN snapshot.object o ON o.key = r.key
WHERE r.snapshot_id = @snapshot_id AND r.build_id <> ''
ORDER BY r.role, r.build_id;
