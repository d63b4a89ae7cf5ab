-- name: LockTenant :exec
-- Holds registrations of one tenant apart until the transaction ends, so that each sees what the others use.
SELECT pg_advisory_xact_lock(hashtextextended('covey snapshot ' || sqlc.arg('tenant_id')::text, 0));

-- name: LockID :exec
-- Holds registration and deletion of one id apart until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('covey snapshot id ' || sqlc.arg('id')::text, 0));

-- name: IsBuried :one
SELECT EXISTS (SELECT 1 FROM snapshot.tombstone WHERE id = @id);

-- name: InsertTombstone :exec
INSERT INTO snapshot.tombstone (id) VALUES (@id) ON CONFLICT DO NOTHING;

-- name: DeleteOldTombstones :exec
DELETE FROM snapshot.tombstone WHERE since < now() - sqlc.arg('keep_ms')::bigint * interval '1 millisecond';

-- name: InsertSnapshot :execrows
-- Waits for a transaction that is inserting the same id; 0 rows where it was there before.
INSERT INTO snapshot.snapshot (id, tenant_id, name, kind, parent_id, host_id, metadata, manifest, create_time)
VALUES (@id, @tenant_id, @name, @kind, @parent_id, @host_id, @metadata, @manifest, @create_time)
ON CONFLICT (id) DO NOTHING;

-- name: InsertReferences :exec
INSERT INTO snapshot.reference (snapshot_id, key, role, build_id)
SELECT sqlc.arg('snapshot_id')::text, unnest(sqlc.arg('keys')::text[]), unnest(sqlc.arg('roles')::text[]), unnest(sqlc.arg('build_ids')::text[]);

-- name: InsertHost :exec
INSERT INTO snapshot.host (snapshot_id, host_id) VALUES (@snapshot_id, @host_id) ON CONFLICT DO NOTHING;

-- name: FindSnapshot :one
-- The empty tenant means any.
SELECT * FROM snapshot.snapshot
WHERE id = @id AND (sqlc.arg('tenant_id')::text = '' OR tenant_id = @tenant_id) AND state <> 'DELETING';

-- name: FindSnapshotByName :one
SELECT * FROM snapshot.snapshot WHERE tenant_id = @tenant_id AND name = @name AND name <> '' AND state <> 'DELETING';

-- name: GetSnapshot :one
-- Whosever it is and in any state.
SELECT * FROM snapshot.snapshot WHERE id = @id;

-- name: LockSnapshot :one
SELECT * FROM snapshot.snapshot
WHERE id = @id AND (sqlc.arg('tenant_id')::text = '' OR tenant_id = @tenant_id) AND state <> 'DELETING'
FOR UPDATE;

-- name: ListSnapshots :many
SELECT * FROM snapshot.snapshot
WHERE tenant_id = @tenant_id AND state <> 'DELETING'
  AND (sqlc.arg('kind')::text = '' OR kind = @kind)
  AND (create_time, id) < (coalesce(sqlc.narg('before_time')::timestamptz, 'infinity'), sqlc.arg('before_id')::text)
ORDER BY create_time DESC, id DESC
LIMIT @row_limit;

-- name: RenameSnapshot :one
UPDATE snapshot.snapshot SET name = @name WHERE id = @id AND tenant_id = @tenant_id AND state <> 'DELETING'
RETURNING *;

-- name: RetireSnapshot :exec
UPDATE snapshot.snapshot SET state = 'DELETING' WHERE id = @id;

-- name: DeleteSnapshot :exec
DELETE FROM snapshot.snapshot WHERE id = @id;

-- name: SetDurable :one
UPDATE snapshot.snapshot SET state = 'DURABLE', durable_time = coalesce(durable_time, now()) WHERE id = @id
RETURNING *;

-- name: ListLineage :many
-- The ancestors of a snapshot, nearest first; the last may be one that is not there any more. Only the tenants own are followed.
WITH RECURSIVE line AS (
    SELECT s.parent_id, 1 AS depth FROM snapshot.snapshot s WHERE s.id = @id
    UNION ALL
    SELECT p.parent_id, line.depth + 1 FROM line JOIN snapshot.snapshot p ON p.id = line.parent_id
    WHERE p.tenant_id = @tenant_id AND line.depth < 1000
)
SELECT line.parent_id FROM line WHERE line.parent_id <> '' ORDER BY line.depth;

-- name: TenantUsage :one
-- What is retired does not count: the tenant has deleted it, and can do no more.
SELECT count(*) AS snapshots,
       ARRAY(SELECT t.id FROM snapshot.snapshot t
             WHERE t.tenant_id = @tenant_id AND t.kind = 'TEMPLATE' AND t.state <> 'DELETING' ORDER BY t.id)::text[] AS templates,
       coalesce((SELECT sum(o.size_bytes) FROM snapshot.object o
                 WHERE o.key IN (SELECT r.key FROM snapshot.reference r JOIN snapshot.snapshot n ON n.id = r.snapshot_id
                                 WHERE n.tenant_id = @tenant_id AND n.state <> 'DELETING')), 0)::bigint AS bytes
FROM snapshot.snapshot s WHERE s.tenant_id = @tenant_id AND s.state <> 'DELETING';

-- name: ListHosts :many
SELECT host_id FROM snapshot.host WHERE snapshot_id = @snapshot_id ORDER BY host_id;

-- name: ListReaders :many
-- The hosts that have some of a snapshot, and those that are about to: they take a lease before they fetch anything.
SELECT h.host_id FROM snapshot.host h WHERE h.snapshot_id = @snapshot_id
UNION
SELECT substr(l.holder, 6) FROM snapshot.lease l
WHERE l.snapshot_id = @snapshot_id AND l.holder LIKE 'host/%' AND (l.until IS NULL OR l.until > now());

-- name: ListExisting :many
SELECT id FROM snapshot.snapshot WHERE id = ANY (sqlc.arg('ids')::text[]) AND state <> 'DELETING'
ORDER BY id FOR KEY SHARE;

-- name: DeleteOtherHostSnapshots :exec
-- What the host has made and nobody else has yet stays: its list may be older than the registration.
DELETE FROM snapshot.host h
WHERE h.host_id = @host_id AND h.snapshot_id <> ALL (sqlc.arg('ids')::text[])
  AND NOT EXISTS (SELECT 1 FROM snapshot.snapshot s WHERE s.id = h.snapshot_id AND s.host_id = h.host_id AND s.state = 'LOCAL');

-- name: InsertHostSnapshots :exec
INSERT INTO snapshot.host (snapshot_id, host_id)
SELECT unnest(sqlc.arg('ids')::text[]), sqlc.arg('host_id')::text
ON CONFLICT DO NOTHING;
