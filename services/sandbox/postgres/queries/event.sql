-- name: ListEvents :many
SELECT seq, sandbox_id, body FROM sandbox.event
WHERE tenant_id = @tenant_id AND seq > @after
ORDER BY seq LIMIT @row_limit;

-- name: ListEventsOfSandbox :many
SELECT seq, sandbox_id, body FROM sandbox.event
WHERE tenant_id = @tenant_id AND sandbox_id = @sandbox_id AND seq > @after
ORDER BY seq LIMIT @row_limit;

-- name: EventRange :one
-- The tenants last event number and the first that is still kept (last + 1 where none is).
SELECT coalesce(max(c.seq), 0)::bigint AS last,
       coalesce((SELECT min(e.seq) FROM sandbox.event e WHERE e.tenant_id = @tenant_id), max(c.seq) + 1, 1)::bigint AS first
FROM sandbox.tenant_clock c WHERE c.tenant_id = @tenant_id;

-- name: DeleteOldEvents :exec
DELETE FROM sandbox.event WHERE at < now() - sqlc.arg('keep_ms')::bigint * interval '1 millisecond';
