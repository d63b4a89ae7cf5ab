-- +goose Up
CREATE SCHEMA IF NOT EXISTS snapshot;

-- One row per snapshot. The manifest is kept as it was registered; what is searched for has columns.
CREATE TABLE snapshot.snapshot (
    id            text        PRIMARY KEY,
    -- Empty for what belongs to no tenant.
    tenant_id     text        NOT NULL,
    name          text        NOT NULL DEFAULT '',
    kind          text        NOT NULL CHECK (kind IN ('TEMPLATE', 'PAUSE', 'FORK', 'IMAGE')),
    state         text        NOT NULL DEFAULT 'LOCAL' CHECK (state IN ('LOCAL', 'DURABLE', 'DELETING')),
    parent_id     text        NOT NULL DEFAULT '',
    -- The host that made it.
    host_id       text        NOT NULL,
    metadata      jsonb       NOT NULL DEFAULT '{}',
    manifest      jsonb       NOT NULL,
    -- When it was taken, by the clock of its host.
    create_time   timestamptz NOT NULL,
    register_time timestamptz NOT NULL DEFAULT now(),
    durable_time  timestamptz
);

CREATE UNIQUE INDEX snapshot_name ON snapshot.snapshot (tenant_id, name) WHERE name <> '' AND state <> 'DELETING';
CREATE INDEX snapshot_newest ON snapshot.snapshot (tenant_id, create_time DESC, id DESC);
CREATE INDEX snapshot_deleting ON snapshot.snapshot (id) WHERE state = 'DELETING';

-- One row per object that a snapshot names or named until lately. It comes into being with the first snapshot that names it, before
-- it has bytes. The path belongs to this row alone, now and for ever: an object of the same key that comes after it has
-- another one.
CREATE TABLE snapshot.object (
    key        text    PRIMARY KEY,
    path       text    NOT NULL UNIQUE,
    size_bytes bigint  NOT NULL,
    sha256     bytea   NOT NULL,
    -- Its bytes are at path, whole and checked.
    stored     boolean NOT NULL DEFAULT false
);

CREATE TABLE snapshot.reference (
    snapshot_id text NOT NULL REFERENCES snapshot.snapshot ON DELETE CASCADE,
    key         text NOT NULL REFERENCES snapshot.object,
    role        text NOT NULL,
    -- Set for builds.
    build_id    text NOT NULL DEFAULT '',
    PRIMARY KEY (snapshot_id, key)
);
CREATE INDEX reference_key ON snapshot.reference (key);

-- Keys that have lost a reference, for the collector to look at. Rows are only added and removed, never changed, so that deletions
-- of snapshots that share builds do not wait for each other here.
CREATE TABLE snapshot.orphan (
    id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL
);

-- +goose StatementBegin
CREATE FUNCTION snapshot.note_orphan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO snapshot.orphan (key) VALUES (OLD.key);
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER reference_deleted AFTER DELETE ON snapshot.reference
    FOR EACH ROW EXECUTE FUNCTION snapshot.note_orphan();

-- Paths whose bytes are to be deleted.
CREATE TABLE snapshot.garbage (
    path  text        PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE snapshot.lease (
    snapshot_id text        NOT NULL REFERENCES snapshot.snapshot ON DELETE CASCADE,
    holder      text        NOT NULL,
    since       timestamptz NOT NULL DEFAULT now(),
    -- Null where it ends only by release.
    until       timestamptz,
    PRIMARY KEY (snapshot_id, holder)
);
CREATE INDEX lease_holder ON snapshot.lease (holder);
CREATE INDEX lease_until ON snapshot.lease (until) WHERE until IS NOT NULL;

-- The hosts that have a snapshot.
CREATE TABLE snapshot.host (
    snapshot_id text NOT NULL REFERENCES snapshot.snapshot ON DELETE CASCADE,
    host_id     text NOT NULL,
    PRIMARY KEY (snapshot_id, host_id)
);
CREATE INDEX host_snapshots ON snapshot.host (host_id);

-- Ids of snapshots that were deleted, or dropped before they were registered: what comes late must not bring them back.
CREATE TABLE snapshot.tombstone (
    id    text        PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now()
);

-- +goose Down
DROP SCHEMA snapshot CASCADE;
