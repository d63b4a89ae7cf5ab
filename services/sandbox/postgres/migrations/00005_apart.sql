-- +goose Up

-- Who has an anti-affinity and where is asked under a lock, for every placement with one.
CREATE INDEX sandbox_apart ON sandbox.sandbox (tenant_id, (spec ->> 'AntiAffinity'))
    WHERE (spec ->> 'AntiAffinity') IS NOT NULL AND state NOT IN ('STOPPED', 'FAILED', 'PAUSED');

-- A template's chore is taken back by its snapshot.
CREATE INDEX chore_snapshot ON sandbox.chore (snapshot_id) WHERE snapshot_id <> '';

-- +goose Down
DROP INDEX sandbox.sandbox_apart, sandbox.chore_snapshot;
