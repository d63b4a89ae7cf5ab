package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// newRequest makes the record of a request; nil where it carries no request id. body is what makes two calls the same.
func newRequest(tenant, id string, op Op, body any, workID string, sandboxIDs []string, snapshotID string) *Request {
	if id == "" {
		return nil
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // Requests are plain data.
	}
	sum := sha256.Sum256(append([]byte(string(op)+"\n"), b...))
	return &Request{Tenant: tenant, ID: id, Method: string(op), Hash: sum[:], WorkID: workID, SandboxIDs: sandboxIDs, SnapshotID: snapshotID}
}

// replay answers a request that was seen before; seen is false where it was not.
func (s *Service) replay(ctx context.Context, req *Request) (out Outcome, seen bool, err error) {
	if req == nil {
		return Outcome{}, false, nil
	}
	prior, err := s.store.Request(ctx, req.Tenant, req.ID)
	if errors.Is(err, NotFound) {
		return Outcome{}, false, nil
	}
	if err != nil {
		return Outcome{}, false, err
	}
	out, err = s.answer(ctx, prior, req)
	return out, true, err
}

// answer gives a second call what the first one gives.
func (s *Service) answer(ctx context.Context, prior Request, req *Request) (Outcome, error) {
	if prior.Method != req.Method || !bytes.Equal(prior.Hash, req.Hash) {
		return Outcome{}, &Error{
			Kind: Exists, Reason: "REQUEST_ID_REUSED",
			Message: fmt.Sprintf("request_id %q was used for another request (%s); give each request an id of its own", req.ID, prior.Method),
			Meta:    map[string]string{"request_id": req.ID},
		}
	}
	return s.follow(ctx, prior)
}

// follow waits for a request's outcome, wherever its work is done.
func (s *Service) follow(ctx context.Context, r Request) (Outcome, error) {
	if r.Outcome == nil {
		if j := s.job(r.WorkID); j != nil {
			if out, err := j.wait(ctx); !errors.Is(err, Aborted) { // Aborted: another has taken the work over, and will answer.
				return out, err
			}
		}
	}
	wake, stop := s.store.Subscribe(r.Tenant, r.SandboxIDs[0])
	defer stop()
	tick := time.NewTicker(safetyTick)
	defer tick.Stop()
	for {
		now, err := s.store.Request(ctx, r.Tenant, r.ID)
		if err != nil {
			return Outcome{}, err
		}
		if now.Outcome != nil {
			return *now.Outcome, now.Outcome.failure()
		}
		if now.LeaseOwner != "" {
			mine, err := s.store.ClaimRequest(ctx, r.Tenant, r.ID)
			if err != nil {
				return Outcome{}, err
			}
			if mine {
				return Outcome{}, errContinue
			}
		} else if out, err := s.superseded(ctx, r); out.Err != nil || err != nil {
			if err == nil {
				err = out.failure()
			}
			return out, err
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return Outcome{}, ctx.Err()
		}
	}
}

// superseded is the outcome of a request whose work was taken from all of its rows before it ended: of a start, for example, that a deletion cut
// short. Nobody else would ever answer it. Err is nil where the work goes on, or has ended meanwhile.
func (s *Service) superseded(ctx context.Context, r Request) (Outcome, error) {
	rows, err := s.store.Find(ctx, r.SandboxIDs)
	if err != nil {
		return Outcome{}, err
	}
	for _, sb := range rows {
		if sb.Work.ID == r.WorkID && sb.State.Working() {
			return Outcome{}, nil
		}
	}
	// Rows and answer are written in one change: what has no answer after the rows were read has none.
	now, err := s.store.Request(ctx, r.Tenant, r.ID)
	if err != nil || now.Outcome != nil {
		return Outcome{}, err
	}
	sb := rows[r.SandboxIDs[0]]
	sb.ID = r.SandboxIDs[0]
	out := Outcome{Err: overtaken(sb)}
	f := &Finish{Tenant: r.Tenant, RequestID: r.ID, SandboxID: sb.ID, Outcome: out}
	if _, err := s.apply(ctx, Change{Finish: f}); err != nil {
		return Outcome{}, err
	}
	return out, nil
}

// errContinue tells the caller of follow that it now holds the request's lease and must do the work itself.
var errContinue = errors.New("the request's worker died")
