-- name: InsertKey :one
INSERT INTO sandbox.api_key (id, tenant_id, name, scopes, hash) VALUES (@id, @tenant_id, @name, @scopes, @hash)
RETURNING *;

-- name: GetKeyByHash :one
SELECT * FROM sandbox.api_key WHERE hash = @hash;

-- name: TouchKey :exec
UPDATE sandbox.api_key SET last_use_time = now()
WHERE id = @id AND (last_use_time IS NULL OR last_use_time < now() - interval '1 minute');

-- name: ListKeys :many
SELECT * FROM sandbox.api_key
WHERE tenant_id = @tenant_id
  AND (create_time, id) < (coalesce(sqlc.narg('before_time')::timestamptz, 'infinity'), sqlc.arg('before_id')::text)
ORDER BY create_time DESC, id DESC
LIMIT @row_limit;

-- name: DeleteOldKeys :exec
-- But for what was adopted: its secret is in a file, of which a key would be made anew.
DELETE FROM sandbox.api_key
WHERE revoke_time < now() - sqlc.arg('keep_ms')::bigint * interval '1 millisecond' AND name <> sqlc.arg('adopted')::text;

-- name: RevokeKey :one
UPDATE sandbox.api_key SET revoke_time = coalesce(revoke_time, now()) WHERE id = @id AND tenant_id = @tenant_id
RETURNING *;
