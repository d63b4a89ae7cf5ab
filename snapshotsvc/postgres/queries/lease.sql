-- name: ListLeases :many
SELECT * FROM snapshot.lease WHERE snapshot_id = @snapshot_id AND (until IS NULL OR until > now()) ORDER BY since, holder;

-- name: UpsertLease :exec
INSERT INTO snapshot.lease (snapshot_id, holder, until)
VALUES (@snapshot_id, @holder, CASE WHEN sqlc.arg('ttl_ms')::bigint > 0 THEN now() + sqlc.arg('ttl_ms')::bigint * interval '1 millisecond' END)
ON CONFLICT (snapshot_id, holder) DO UPDATE SET until = EXCLUDED.until;

-- name: RenewLease :execrows
-- Also where the snapshot is retired: who has a lease keeps it.
UPDATE snapshot.lease l
SET until = CASE WHEN sqlc.arg('ttl_ms')::bigint > 0 THEN now() + sqlc.arg('ttl_ms')::bigint * interval '1 millisecond' END
FROM snapshot.snapshot s
WHERE s.id = l.snapshot_id AND l.snapshot_id = @snapshot_id AND l.holder = @holder AND (l.until IS NULL OR l.until > now())
  AND (sqlc.arg('tenant_id')::text = '' OR s.tenant_id = @tenant_id);

-- name: ReleaseLeases :exec
-- The empty snapshot means all of the holders, the empty tenant any.
DELETE FROM snapshot.lease l USING snapshot.snapshot s
WHERE s.id = l.snapshot_id AND l.holder = @holder
  AND (sqlc.arg('snapshot_id')::text = '' OR l.snapshot_id = @snapshot_id)
  AND (sqlc.arg('tenant_id')::text = '' OR s.tenant_id = @tenant_id);

-- name: DeleteEndedLeases :exec
DELETE FROM snapshot.lease WHERE until <= now();

-- name: DeleteRetired :execrows
DELETE FROM snapshot.snapshot s
WHERE s.state = 'DELETING' AND NOT EXISTS (SELECT 1 FROM snapshot.lease l WHERE l.snapshot_id = s.id);
