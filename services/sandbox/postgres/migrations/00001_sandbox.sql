-- +goose Up
CREATE SCHEMA IF NOT EXISTS sandbox;

-- One row per sandbox. What never changes after creation is in spec; what the state machine moves has columns.
CREATE TABLE sandbox.sandbox (
    id                 text        PRIMARY KEY,
    tenant_id          text        NOT NULL,
    state              text        NOT NULL CHECK (state IN ('PENDING', 'STARTING', 'RUNNING', 'PAUSING', 'PAUSED',
                                                             'RESUMING', 'STOPPING', 'STOPPED', 'FAILED')),
    reason             text        NOT NULL DEFAULT '',
    spec               jsonb       NOT NULL,
    metadata           jsonb       NOT NULL DEFAULT '{}',
    host_id            text        NOT NULL DEFAULT '',
    -- Of a paused sandbox: its saved state.
    snapshot_id        text        NOT NULL DEFAULT '',
    -- Of a live one: its own former pause snapshot, from which memory and disk may still be read.
    base_snapshot_id   text        NOT NULL DEFAULT '',
    -- Of a live one: the template's or fork's snapshot, from which memory and disk may still be read.
    source_snapshot_id text        NOT NULL DEFAULT '',
    durable            boolean     NOT NULL DEFAULT false,
    version            bigint      NOT NULL DEFAULT 1,
    create_time        timestamptz NOT NULL DEFAULT now(),
    state_time         timestamptz NOT NULL DEFAULT now(),
    last_active_time   timestamptz NOT NULL DEFAULT now(),
    expire_time        timestamptz,
    -- The work under way, or the last: what is needed to continue it after its worker died.
    work_id            text        NOT NULL DEFAULT '',
    work               jsonb       NOT NULL DEFAULT '{}',
    work_error         jsonb,
    -- Who does the work; others leave the row alone until lease_until.
    lease_owner        text        NOT NULL DEFAULT '',
    lease_until        timestamptz
);

CREATE INDEX sandbox_newest ON sandbox.sandbox (tenant_id, create_time DESC, id DESC);
CREATE INDEX sandbox_metadata ON sandbox.sandbox USING gin (metadata jsonb_path_ops);
CREATE INDEX sandbox_host ON sandbox.sandbox (host_id) WHERE state NOT IN ('STOPPED', 'FAILED');
CREATE INDEX sandbox_stuck ON sandbox.sandbox (lease_until)
    WHERE state IN ('PENDING', 'STARTING', 'PAUSING', 'RESUMING', 'STOPPING');
CREATE INDEX sandbox_work ON sandbox.sandbox (work_id);
CREATE INDEX sandbox_expire ON sandbox.sandbox (expire_time)
    WHERE expire_time IS NOT NULL AND state NOT IN ('STOPPED', 'FAILED');
CREATE INDEX sandbox_undurable ON sandbox.sandbox (state_time) WHERE state = 'PAUSED' AND NOT durable;
CREATE INDEX sandbox_snapshot ON sandbox.sandbox (snapshot_id) WHERE snapshot_id <> '';
CREATE INDEX sandbox_base ON sandbox.sandbox (base_snapshot_id) WHERE base_snapshot_id <> '';
CREATE INDEX sandbox_source ON sandbox.sandbox (source_snapshot_id) WHERE source_snapshot_id <> '';

-- The last number given to a change of each tenant. A row that is locked until commit, and not a sequence: numbers of a
-- sequence become visible out of order, and a watcher that continues after N would miss a smaller one that commits late.
CREATE TABLE sandbox.tenant_clock (
    tenant_id text   PRIMARY KEY,
    seq       bigint NOT NULL
);

-- Every change of a sandbox, as the row was after it (without its environment, which may hold secrets).
CREATE TABLE sandbox.event (
    tenant_id  text        NOT NULL,
    seq        bigint      NOT NULL,
    sandbox_id text        NOT NULL,
    body       jsonb       NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, seq)
);
CREATE INDEX event_at ON sandbox.event (at);

-- +goose StatementBegin
CREATE FUNCTION sandbox.record_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    INSERT INTO sandbox.tenant_clock AS c (tenant_id, seq) VALUES (NEW.tenant_id, 1)
        ON CONFLICT (tenant_id) DO UPDATE SET seq = c.seq + 1
        RETURNING seq INTO n;
    INSERT INTO sandbox.event (tenant_id, seq, sandbox_id, body)
        VALUES (NEW.tenant_id, n, NEW.id, to_jsonb(NEW) #- '{spec,Env}');
    PERFORM pg_notify('covey_sandbox', NEW.id || ' ' || NEW.tenant_id);
    RETURN NULL;
END
$$;
-- +goose StatementEnd

CREATE TRIGGER sandbox_inserted AFTER INSERT ON sandbox.sandbox
    FOR EACH ROW EXECUTE FUNCTION sandbox.record_change();
CREATE TRIGGER sandbox_changed AFTER UPDATE ON sandbox.sandbox
    FOR EACH ROW WHEN (OLD.version IS DISTINCT FROM NEW.version) EXECUTE FUNCTION sandbox.record_change();

-- Requests that carried a request_id, so that a repeated one is answered and not done again.
CREATE TABLE sandbox.request (
    tenant_id   text        NOT NULL,
    request_id  text        NOT NULL,
    method      text        NOT NULL,
    hash        bytea       NOT NULL,
    work_id     text        NOT NULL,
    sandbox_ids text[]      NOT NULL,
    snapshot_id text        NOT NULL DEFAULT '',
    outcome     jsonb,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- Only for requests that change no row while they run.
    lease_owner text        NOT NULL DEFAULT '',
    lease_until timestamptz,
    PRIMARY KEY (tenant_id, request_id)
);
CREATE INDEX request_create_time ON sandbox.request (create_time);

-- How each sandbox was last started, in the encoding of the adapter that made it.
CREATE TABLE sandbox.receipt (
    sandbox_id text  PRIMARY KEY REFERENCES sandbox.sandbox (id) ON DELETE CASCADE,
    body       bytea NOT NULL
);

-- What remains to be done outside the database because of a change; written with the change, removed when done.
CREATE TABLE sandbox.chore (
    id          bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    kind        text        NOT NULL,
    sandbox_id  text        NOT NULL DEFAULT '',
    snapshot_id text        NOT NULL DEFAULT '',
    host_id     text        NOT NULL DEFAULT '',
    attempts    integer     NOT NULL DEFAULT 0,
    not_before  timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX chore_due ON sandbox.chore (not_before);

CREATE TABLE sandbox.api_key (
    id            text        PRIMARY KEY,
    tenant_id     text        NOT NULL,
    name          text        NOT NULL,
    scopes        text[]      NOT NULL,
    hash          bytea       NOT NULL UNIQUE,
    create_time   timestamptz NOT NULL DEFAULT now(),
    last_use_time timestamptz,
    revoke_time   timestamptz
);
CREATE INDEX api_key_newest ON sandbox.api_key (tenant_id, create_time DESC, id DESC);

-- +goose Down
DROP TABLE sandbox.api_key, sandbox.chore, sandbox.receipt, sandbox.request, sandbox.event, sandbox.tenant_clock, sandbox.sandbox;
DROP FUNCTION sandbox.record_change();
