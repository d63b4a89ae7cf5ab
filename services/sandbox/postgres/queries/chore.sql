-- name: InsertChore :exec
INSERT INTO sandbox.chore (kind, sandbox_id, snapshot_id, host_id, not_before)
VALUES (@kind, @sandbox_id, @snapshot_id, @host_id, now() + sqlc.arg('after_ms')::bigint * interval '1 millisecond');

-- name: ForgetChore :execrows
-- Only while nobody has begun it: what has been handed out may be under way, or done.
DELETE FROM sandbox.chore WHERE kind = @kind AND snapshot_id = @snapshot_id AND attempts = 0;

-- name: ClaimChores :many
-- Hands out what is due, what is not done by then is due again later, after ever longer times.
UPDATE sandbox.chore
SET attempts = attempts + 1, not_before = now() + least(600, 5 * power(2, least(attempts, 10))) * interval '1 second'
WHERE id IN (SELECT c.id FROM sandbox.chore c WHERE c.not_before <= now() ORDER BY c.id LIMIT @row_limit FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: DeleteChore :exec
DELETE FROM sandbox.chore WHERE id = @id;

-- name: DeferChore :exec
UPDATE sandbox.chore SET not_before = now() + sqlc.arg('delay_ms')::bigint * interval '1 millisecond' WHERE id = @id;
