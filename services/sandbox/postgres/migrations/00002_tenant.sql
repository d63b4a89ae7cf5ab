-- +goose Up

-- What a tenant may have at once. No row, or null: the default of the mesh. 0: no bound. The row is also what changes that take
-- more lock, one after the other, so that no two of them count the same room as free.
CREATE TABLE sandbox.quota (
    tenant_id      text PRIMARY KEY,
    sandboxes      bigint,
    vcpus          bigint,
    memory_mb      bigint,
    snapshots      bigint,
    snapshot_bytes bigint
);
CREATE INDEX sandbox_of_tenant ON sandbox.sandbox (tenant_id) WHERE state NOT IN ('STOPPED', 'FAILED');

-- Templates being made, which the registry may not list yet. One that is done counts for those who read the registry's list before.
CREATE TABLE sandbox.snapshot_claim (
    snapshot_id text        PRIMARY KEY,
    tenant_id   text        NOT NULL,
    claim_time  timestamptz NOT NULL DEFAULT now(),
    done_time   timestamptz
);
CREATE INDEX snapshot_claim_tenant ON sandbox.snapshot_claim (tenant_id);

-- The spans of time in which sandboxes ran. They outlive the sandboxes' rows.
CREATE TABLE sandbox.usage (
    tenant_id  text        NOT NULL,
    sandbox_id text        NOT NULL,
    vcpus      bigint      NOT NULL,
    memory_mb  bigint      NOT NULL,
    start_time timestamptz NOT NULL,
    end_time   timestamptz
);
CREATE UNIQUE INDEX usage_open ON sandbox.usage (sandbox_id) WHERE end_time IS NULL;
CREATE INDEX usage_tenant ON sandbox.usage (tenant_id, start_time);

-- +goose StatementBegin
-- Written by the same statement that changes the state, so that no crash can come in between and no query can forget to.
CREATE FUNCTION sandbox.record_usage() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ran  boolean := TG_OP = 'UPDATE' AND OLD.state IN ('RUNNING', 'PAUSING');
    runs boolean := NEW.state IN ('RUNNING', 'PAUSING');
BEGIN
    IF runs AND NOT ran THEN
        INSERT INTO sandbox.usage (tenant_id, sandbox_id, vcpus, memory_mb, start_time)
            VALUES (NEW.tenant_id, NEW.id, coalesce((NEW.spec ->> 'VCPUs')::bigint, 0), coalesce((NEW.spec ->> 'MemoryMB')::bigint, 0), NEW.state_time);
    ELSIF ran AND NOT runs THEN
        UPDATE sandbox.usage SET end_time = greatest(start_time, NEW.state_time) WHERE sandbox_id = NEW.id AND end_time IS NULL;
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER sandbox_usage_inserted AFTER INSERT ON sandbox.sandbox
    FOR EACH ROW EXECUTE FUNCTION sandbox.record_usage();
CREATE TRIGGER sandbox_usage_changed AFTER UPDATE ON sandbox.sandbox
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION sandbox.record_usage();

INSERT INTO sandbox.usage (tenant_id, sandbox_id, vcpus, memory_mb, start_time)
SELECT tenant_id, id, coalesce((spec ->> 'VCPUs')::bigint, 0), coalesce((spec ->> 'MemoryMB')::bigint, 0), state_time
FROM sandbox.sandbox WHERE state IN ('RUNNING', 'PAUSING');

-- Calls that were to change something: written before they are carried out, completed after.
CREATE TABLE sandbox.audit (
    id         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    time       timestamptz NOT NULL DEFAULT now(),
    tenant_id  text        NOT NULL,
    key_id     text        NOT NULL DEFAULT '',
    request_id text        NOT NULL DEFAULT '',
    method     text        NOT NULL,
    target     text        NOT NULL DEFAULT '',
    code       text        NOT NULL DEFAULT '',
    reason     text        NOT NULL DEFAULT ''
);
CREATE INDEX audit_tenant ON sandbox.audit (tenant_id, id);
CREATE INDEX audit_target ON sandbox.audit (target, id) WHERE target <> '';

-- +goose Down
DROP TABLE sandbox.audit, sandbox.usage, sandbox.snapshot_claim, sandbox.quota CASCADE;
DROP TRIGGER sandbox_usage_inserted ON sandbox.sandbox;
DROP TRIGGER sandbox_usage_changed ON sandbox.sandbox;
DROP FUNCTION sandbox.record_usage();
DROP INDEX sandbox.sandbox_of_tenant;
