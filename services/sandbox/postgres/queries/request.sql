-- name: InsertRequest :execrows
-- Waits for a transaction that is inserting the same one, 0 rows where it was there before.
INSERT INTO sandbox.request (tenant_id, request_id, method, hash, work_id, sandbox_ids, snapshot_id, outcome, lease_owner, lease_until)
VALUES (@tenant_id, @request_id, @method, @hash, @work_id, @sandbox_ids, @snapshot_id, sqlc.narg('outcome')::jsonb, @lease_owner,
        CASE WHEN @lease_owner = '' THEN NULL ELSE now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond' END)
ON CONFLICT DO NOTHING;

-- name: GetRequest :one
SELECT * FROM sandbox.request WHERE tenant_id = @tenant_id AND request_id = @request_id;

-- name: FinishRequest :exec
UPDATE sandbox.request SET outcome = @outcome, lease_owner = '', lease_until = NULL
WHERE tenant_id = @tenant_id AND request_id = @request_id AND outcome IS NULL;

-- name: ClaimRequest :execrows
UPDATE sandbox.request
SET lease_owner = @owner, lease_until = now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond'
WHERE tenant_id = @tenant_id AND request_id = @request_id AND outcome IS NULL AND lease_until < now();

-- name: RenewRequests :many
UPDATE sandbox.request
SET lease_until = now() + sqlc.arg('lease_ms')::bigint * interval '1 millisecond'
WHERE work_id = ANY (sqlc.arg('work_ids')::text[]) AND lease_owner = @owner
RETURNING work_id;

-- name: DeleteOldRequests :exec
-- Answered or not: no work takes that long, and what its worker left is only taken up by who asks again.
DELETE FROM sandbox.request
WHERE create_time < now() - sqlc.arg('keep_ms')::bigint * interval '1 millisecond';

-- name: NotifyRequest :exec
SELECT pg_notify('covey_sandbox', sqlc.arg('sandbox_id')::text || ' ' || sqlc.arg('tenant_id')::text);
