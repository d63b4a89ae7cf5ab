-- +goose Up

-- Who watches one sandbox reads its changes alone, and not all of its tenant's since its own last one.
CREATE INDEX event_sandbox ON sandbox.event (tenant_id, sandbox_id, seq);

-- What is too old to keep is found without reading all.
CREATE INDEX sandbox_final ON sandbox.sandbox (state_time) WHERE state IN ('STOPPED', 'FAILED');
CREATE INDEX usage_end ON sandbox.usage (end_time);
CREATE INDEX audit_time ON sandbox.audit (time);

UPDATE sandbox.sandbox SET spec = spec - 'Env' WHERE state IN ('STOPPED', 'FAILED') AND spec ? 'Env';

-- +goose Down
DROP INDEX sandbox.event_sandbox, sandbox.sandbox_final, sandbox.usage_end, sandbox.audit_time;
