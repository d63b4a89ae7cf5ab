package postgres

import (
	"encoding/json"
	"fmt"

	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres/queries"
)

// encoded are the columns of a sandbox that are JSON.
type encoded struct {
	spec, metadata, work, workError json.RawMessage
}

func encode(sb sandbox.Sandbox) (e encoded, err error) {
	if e.spec, err = json.Marshal(sb.Spec); err != nil {
		return e, err
	}
	if e.metadata, err = encodeMap(sb.Metadata); err != nil {
		return e, err
	}
	if e.work, err = json.Marshal(sb.Work); err != nil {
		return e, err
	}
	if sb.WorkError != nil {
		e.workError, err = json.Marshal(sb.WorkError)
	}
	return e, err
}

// encodeMap makes no map the empty object, which every object contains.
func encodeMap(m map[string]string) (json.RawMessage, error) {
	if m == nil {
		return json.RawMessage("{}"), nil
	}
	return json.Marshal(m)
}

func decode(r queries.Sandbox) (sandbox.Sandbox, error) {
	sb := sandbox.Sandbox{
		ID: r.ID, Tenant: r.TenantID, State: sandbox.State(r.State), Reason: r.Reason, HostID: r.HostID,
		SnapshotID: r.SnapshotID, BaseSnapshotID: r.BaseSnapshotID, SourceSnapshotID: r.SourceSnapshotID, Durable: r.Durable,
		Version: r.Version, CreateTime: r.CreateTime, StateTime: r.StateTime, LastActiveTime: r.LastActiveTime,
		LeaseOwner: r.LeaseOwner,
	}
	if r.ExpireTime != nil {
		sb.ExpireTime = *r.ExpireTime
	}
	for _, c := range []struct {
		name string
		from json.RawMessage
		to   any
	}{
		{"spec", r.Spec, &sb.Spec}, {"metadata", r.Metadata, &sb.Metadata}, {"work", r.Work, &sb.Work}, {"work_error", r.WorkError, &sb.WorkError},
	} {
		if len(c.from) == 0 {
			continue
		}
		if err := json.Unmarshal(c.from, c.to); err != nil {
			return sandbox.Sandbox{}, fmt.Errorf("sandbox %s: column %s: %w", r.ID, c.name, err)
		}
	}
	sb.Work.ID = r.WorkID
	return sb, nil
}

func decodeAll(rows []queries.Sandbox, err error) ([]sandbox.Sandbox, error) {
	if err != nil {
		return nil, known(err)
	}
	all := make([]sandbox.Sandbox, len(rows))
	for i, r := range rows {
		if all[i], err = decode(r); err != nil {
			return nil, err
		}
	}
	return all, nil
}
