-- +goose Up

-- Events of other daemons are written under a name that they gave them, so that writing one again, with its end or because the first answer was
-- lost, makes no second one.
ALTER TABLE sandbox.audit
    ADD COLUMN uid    text   NOT NULL DEFAULT '',
    ADD COLUMN detail text   NOT NULL DEFAULT '',
    ADD COLUMN count  bigint NOT NULL DEFAULT 1;
CREATE UNIQUE INDEX audit_uid ON sandbox.audit (uid) WHERE uid <> '';
CREATE INDEX audit_method ON sandbox.audit (method, id);

-- +goose Down
DROP INDEX sandbox.audit_method, sandbox.audit_uid;
ALTER TABLE sandbox.audit DROP COLUMN uid, DROP COLUMN detail, DROP COLUMN count;
