-- name: InsertSandbox :one
INSERT INTO sandbox.sandbox (id, tenant_id, state, reason, spec, metadata, host_id, source_snapshot_id, expire_time,
                             work_id, work, lease_owner, lease_until)
VALUES (@id, @tenant_id, @state, @reason, @spec, @metadata, @host_id, @source_snapshot_id,
        CASE WHEN sqlc.arg('max_lifetime_sec')::bigint > 0 THEN now() + sqlc.arg('max_lifetime_sec')::bigint * interval '1 second' END,
        @work_id, @work, @lease_owner,
        CASE WHEN @lease_owner = '' THEN NULL ELSE now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond' END)
RETURNING *;

-- name: UpdateSandbox :one
-- Compare-and-set: no row where the version is not the one given. A change that a host made before now has its time, between
-- the change before and now, whatever the host's clock says.
UPDATE sandbox.sandbox
SET state_time         = CASE WHEN state <> @state
                              THEN greatest(state_time, least(now(), coalesce(sqlc.narg('since')::timestamptz, now())))
                              ELSE state_time END,
    state              = @state,
    reason             = @reason,
    -- What is gone needs its environment no more, which may hold secrets.
    spec               = CASE WHEN @state IN ('STOPPED', 'FAILED') THEN spec - 'Env' ELSE spec END,
    host_id            = @host_id,
    snapshot_id        = @snapshot_id,
    base_snapshot_id   = @base_snapshot_id,
    source_snapshot_id = @source_snapshot_id,
    durable            = @durable,
    last_active_time   = greatest(last_active_time, sqlc.narg('last_active_time')::timestamptz),
    work_id            = @work_id,
    work               = @work,
    work_error         = sqlc.narg('work_error')::jsonb,
    lease_owner        = @lease_owner,
    lease_until        = CASE WHEN @lease_owner = '' THEN NULL ELSE now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond' END,
    version            = version + 1
WHERE id = @id AND version = sqlc.arg('version')
RETURNING *;

-- name: RequireSandbox :one
-- Holds a row of the given version as it is until the transaction ends.
SELECT id FROM sandbox.sandbox WHERE id = @id AND version = sqlc.arg('version') FOR SHARE;

-- name: GetSandbox :one
SELECT * FROM sandbox.sandbox WHERE id = @id AND tenant_id = @tenant_id;

-- name: FindSandboxes :many
SELECT * FROM sandbox.sandbox WHERE id = ANY (sqlc.arg('ids')::text[]);

-- name: ListSandboxes :many
SELECT * FROM sandbox.sandbox
WHERE tenant_id = @tenant_id
  AND (cardinality(sqlc.arg('states')::text[]) = 0 OR state = ANY (sqlc.arg('states')::text[]))
  AND (cardinality(sqlc.arg('states')::text[]) > 0 OR state NOT IN ('STOPPED', 'FAILED') OR state_time > now() - interval '1 hour')
  AND metadata @> sqlc.arg('metadata')::jsonb
  AND (create_time, id) < (coalesce(sqlc.narg('before_time')::timestamptz, 'infinity'), sqlc.arg('before_id')::text)
ORDER BY create_time DESC, id DESC
LIMIT @row_limit;

-- name: ListOnHost :many
SELECT * FROM sandbox.sandbox WHERE host_id = @host_id AND state NOT IN ('STOPPED', 'FAILED');

-- name: ListApart :many
-- What is paused holds no room; what is being resumed is bound to where it was paused until it is placed, which does no harm.
SELECT * FROM sandbox.sandbox
WHERE tenant_id = @tenant_id AND host_id <> '' AND state NOT IN ('STOPPED', 'FAILED', 'PAUSED')
  AND spec ->> 'AntiAffinity' = sqlc.arg('anti_affinity')::text;

-- name: LockAntiAffinity :exec
SELECT pg_advisory_xact_lock(hashtextextended('covey apart ' || @tenant_id::text || ' ' || sqlc.arg('anti_affinity')::text, 0));

-- name: ListOfWork :many
SELECT * FROM sandbox.sandbox WHERE work_id = @work_id ORDER BY id;

-- name: ListUndurable :many
SELECT * FROM sandbox.sandbox WHERE state = 'PAUSED' AND NOT durable ORDER BY random() LIMIT @row_limit;

-- name: ListExpired :many
SELECT * FROM sandbox.sandbox
WHERE expire_time < now() - sqlc.arg('grace_ms')::bigint * interval '1 millisecond' AND state NOT IN ('STOPPED', 'FAILED', 'STOPPING')
ORDER BY expire_time LIMIT @row_limit;

-- name: ListHostsInUse :many
SELECT DISTINCT host_id FROM sandbox.sandbox WHERE host_id <> '' AND state = 'RUNNING';

-- name: ClaimStuck :many
-- Takes over rows whose worker lease ended. The version grows, so that the former worker can change nothing any more.
-- Of work on several rows only the first can be claimed and stands for all, so that no two replicas get parts of it.
UPDATE sandbox.sandbox
SET lease_owner = @owner, lease_until = now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond', version = version + 1
WHERE id IN (SELECT s.id FROM sandbox.sandbox s
             WHERE s.state IN ('PENDING', 'STARTING', 'PAUSING', 'RESUMING', 'STOPPING')
               AND (s.lease_until IS NULL OR s.lease_until < now())
               AND s.id = (SELECT min(w.id) FROM sandbox.sandbox w WHERE w.work_id = s.work_id
                           AND w.state IN ('PENDING', 'STARTING', 'PAUSING', 'RESUMING', 'STOPPING'))
             ORDER BY s.lease_until NULLS FIRST
             LIMIT @row_limit FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: RenewLeases :many
UPDATE sandbox.sandbox
SET lease_until = now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond'
WHERE id = ANY (sqlc.arg('ids')::text[]) AND lease_owner = @owner
RETURNING id, work_id;

-- name: ReleaseLeases :exec
-- Ends the leases of a worker that gives up its rows, so that another takes them at once.
UPDATE sandbox.sandbox SET lease_until = now() WHERE lease_owner = @owner AND work_id = @work_id AND lease_until > now();

-- name: TouchSandboxes :exec
-- Notes use. No change of version: it happens all the time and no watcher waits for it. Rows that another is changing are left out, for they
-- are noted again within seconds: waiting for them, two replicas that note the same use could wait for each other.
UPDATE sandbox.sandbox s
SET last_active_time = t.at
FROM (SELECT unnest(sqlc.arg('ids')::text[]) AS id, unnest(sqlc.arg('times')::timestamptz[]) AS at) t
WHERE s.id = t.id AND s.id IN (SELECT o.id FROM sandbox.sandbox o
                               JOIN (SELECT unnest(sqlc.arg('ids')::text[]) AS id, unnest(sqlc.arg('times')::timestamptz[]) AS at) n ON n.id = o.id
                               WHERE o.last_active_time < n.at FOR UPDATE OF o SKIP LOCKED);

-- name: CountSnapshotUsers :one
SELECT count(*) FROM sandbox.sandbox
WHERE (snapshot_id = @snapshot_id AND snapshot_id <> '') OR (base_snapshot_id = @snapshot_id AND base_snapshot_id <> '')
   OR (source_snapshot_id = @snapshot_id AND source_snapshot_id <> '');

-- name: DeleteOldSandboxes :exec
DELETE FROM sandbox.sandbox
WHERE state IN ('STOPPED', 'FAILED') AND state_time < now() - sqlc.arg('keep_ms')::bigint * interval '1 millisecond';

-- name: UpsertReceipt :exec
INSERT INTO sandbox.receipt (sandbox_id, body) VALUES (@sandbox_id, @body)
ON CONFLICT (sandbox_id) DO UPDATE SET body = excluded.body;

-- name: GetReceipt :one
SELECT r.body FROM sandbox.receipt r JOIN sandbox.sandbox s ON s.id = r.sandbox_id
WHERE r.sandbox_id = @sandbox_id AND s.tenant_id = @tenant_id;
