-- name: InsertKey :one
INSERT INTO sandbox.api_key (id, tenant_id, name, scopes, hash) VALUES (@id, @tenant_id, @name, @scopes, @hash)
RETURNING *;

-- name: GetKeyByHash :one
SELECT * FROM sandbox.api_key WHERE hash = @hash;

-- name: TouchKey :exec
UPDATE sandbox.api_key SET last_use_time = now()
WHERE id = @id AND (last_use_time IS NULL OR last_use_time < now() - interval '1 minute');

-- name: ListKeys :many
SELECT * FROM sandbox.api_key WHERE tenant_id = @tenant_id ORDER BY create_time DESC, id DESC;

-- name: RevokeKey :one
UPDATE sandbox.api_key SET revoke_time = coalesce(revoke_time, now()) WHERE id = @id AND tenant_id = @tenant_id
RETURNING *;
