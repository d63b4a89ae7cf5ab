-- name: LockQuota :one
-- Changes of one tenant that take more wait for each other here.
INSERT INTO sandbox.quota AS q (tenant_id) VALUES (@tenant_id)
ON CONFLICT (tenant_id) DO UPDATE SET tenant_id = q.tenant_id
RETURNING *;

-- name: GetQuota :one
SELECT * FROM sandbox.quota WHERE tenant_id = @tenant_id;

-- name: SetQuota :exec
INSERT INTO sandbox.quota (tenant_id, sandboxes, vcpus, memory_mb, snapshots, snapshot_bytes)
VALUES (@tenant_id, sqlc.narg('sandboxes'), sqlc.narg('vcpus'), sqlc.narg('memory_mb'), sqlc.narg('snapshots'), sqlc.narg('snapshot_bytes'))
ON CONFLICT (tenant_id) DO UPDATE SET sandboxes = excluded.sandboxes, vcpus = excluded.vcpus, memory_mb = excluded.memory_mb,
    snapshots = excluded.snapshots, snapshot_bytes = excluded.snapshot_bytes;

-- name: SumInUse :one
-- One that is being deleted has its VM until it is STOPPED, unless it was paused.
SELECT count(*) AS sandboxes,
       coalesce(sum((spec ->> 'VCPUs')::bigint) FILTER (WHERE live), 0)::bigint AS vcpus,
       coalesce(sum((spec ->> 'MemoryMB')::bigint) FILTER (WHERE live), 0)::bigint AS memory_mb
FROM (SELECT spec, state <> 'PAUSED' AND NOT (state = 'STOPPING' AND coalesce((work ->> 'Saved')::boolean, false)) AS live
      FROM sandbox.sandbox WHERE tenant_id = @tenant_id AND state NOT IN ('STOPPED', 'FAILED')) s;

-- name: ListSnapshotClaims :many
-- Those that a list of the registry from the given time may lack. A worker that died leaves its claim for a while.
SELECT snapshot_id FROM sandbox.snapshot_claim
WHERE tenant_id = @tenant_id AND (done_time >= @since OR done_time IS NULL AND claim_time > now() - interval '15 minutes');

-- name: ClaimSnapshot :exec
INSERT INTO sandbox.snapshot_claim (snapshot_id, tenant_id) VALUES (@snapshot_id, @tenant_id)
ON CONFLICT (snapshot_id) DO UPDATE SET claim_time = now(), done_time = NULL;

-- name: FinishSnapshotClaim :exec
UPDATE sandbox.snapshot_claim SET done_time = clock_timestamp() WHERE snapshot_id = @snapshot_id;

-- name: DropSnapshotClaim :exec
DELETE FROM sandbox.snapshot_claim WHERE snapshot_id = @snapshot_id;

-- name: DeleteOldSnapshotClaims :exec
DELETE FROM sandbox.snapshot_claim WHERE claim_time < now() - interval '1 hour';

-- name: Clock :one
SELECT clock_timestamp()::timestamptz AS now;

-- name: SumUsage :many
-- What the sandboxes that used the most used between two times, and in each row what all did; one that still runs counts until now.
SELECT u.sandbox_id, sum(extract(epoch FROM s.ran))::float8 AS seconds,
       sum(u.vcpus * extract(epoch FROM s.ran))::float8 AS vcpu_seconds,
       sum(u.memory_mb * extract(epoch FROM s.ran) / 1024)::float8 AS gib_seconds,
       count(*) OVER () AS sandboxes,
       (sum(sum(extract(epoch FROM s.ran))) OVER ())::float8 AS all_seconds,
       (sum(sum(u.vcpus * extract(epoch FROM s.ran))) OVER ())::float8 AS all_vcpu_seconds,
       (sum(sum(u.memory_mb * extract(epoch FROM s.ran) / 1024)) OVER ())::float8 AS all_gib_seconds
FROM sandbox.usage u
CROSS JOIN LATERAL (SELECT least(coalesce(u.end_time, now()), sqlc.arg('until')::timestamptz) - greatest(u.start_time, sqlc.arg('since')::timestamptz) AS ran) s
WHERE u.tenant_id = @tenant_id AND u.start_time < sqlc.arg('until')::timestamptz AND (u.end_time IS NULL OR u.end_time > sqlc.arg('since')::timestamptz)
  AND s.ran > interval '0'
GROUP BY u.sandbox_id ORDER BY vcpu_seconds DESC, u.sandbox_id LIMIT @row_limit;

-- name: DeleteOldUsage :exec
DELETE FROM sandbox.usage WHERE end_time < now() - interval '400 days';

-- name: InsertAudit :one
INSERT INTO sandbox.audit (tenant_id, key_id, request_id, method, target) VALUES (@tenant_id, @key_id, @request_id, @method, @target)
RETURNING id;

-- name: FinishAudit :exec
UPDATE sandbox.audit SET code = @code, reason = @reason, target = CASE WHEN @target::text = '' THEN target ELSE @target END WHERE id = @id;

-- name: WriteAudit :exec
-- An event that is there keeps when and what it was; how it ended and how often are the last writer's.
INSERT INTO sandbox.audit AS a (uid, time, tenant_id, key_id, request_id, method, target, detail, count, code, reason)
SELECT unnest(@uids::text[]), unnest(@times::timestamptz[]), unnest(@tenant_ids::text[]), unnest(@key_ids::text[]), unnest(@request_ids::text[]),
       unnest(@methods::text[]), unnest(@targets::text[]), unnest(@details::text[]), unnest(@counts::bigint[]), unnest(@codes::text[]), unnest(@reasons::text[])
ON CONFLICT (uid) WHERE uid <> '' DO UPDATE SET
    code = CASE WHEN excluded.code = '' THEN a.code ELSE excluded.code END, reason = CASE WHEN excluded.code = '' THEN a.reason ELSE excluded.reason END,
    target = CASE WHEN excluded.target = '' THEN a.target ELSE excluded.target END, count = greatest(a.count, excluded.count);

-- name: ListAudit :many
SELECT * FROM sandbox.audit
WHERE (@tenant_id::text = '' OR tenant_id = @tenant_id) AND (@target::text = '' OR target = @target) AND (@key_id::text = '' OR key_id = @key_id)
  AND (@method::text = '' OR method = @method) AND (@code::text = '' OR code = @code)
  AND (sqlc.narg('since')::timestamptz IS NULL OR time >= sqlc.narg('since')) AND (sqlc.narg('until')::timestamptz IS NULL OR time < sqlc.narg('until'))
  AND (sqlc.arg('before')::bigint = 0 OR id < sqlc.arg('before')::bigint)
ORDER BY id DESC LIMIT @row_limit;

-- name: DeleteOldAudit :exec
DELETE FROM sandbox.audit WHERE time < now() - interval '400 days';
