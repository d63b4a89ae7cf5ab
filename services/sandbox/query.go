package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Get reads a sandbox of the tenant.
func (s *Service) Get(ctx context.Context, tenant, id string) (Sandbox, error) {
	if err := checkSandboxID(id); err != nil {
		return Sandbox{}, err
	}
	return s.store.Get(ctx, tenant, id)
}

// pageToken is a position in a list of one filter. It names the last sandbox, or key, of the page before, so that what is made
// meanwhile, which comes before it, moves nothing.
type pageToken struct {
	Time   time.Time `json:"t"`
	ID     string    `json:"i"`
	Filter []byte    `json:"f"`
}

// filterHash tells whether a token is of the same list.
func (r *ListRequest) filterHash(tenant string) []byte {
	h := sha256.New()
	states := slices.Clone(r.States)
	slices.Sort(states)
	for _, p := range states {
		h.Write([]byte(p + "\n"))
	}
	for _, k := range slices.Sorted(maps.Keys(r.Metadata)) {
		h.Write([]byte(k + "=" + r.Metadata[k] + "\n"))
	}
	h.Write([]byte(tenant))
	return h.Sum(nil)[:8]
}

// List reads a page of the tenant's sandboxes, newest first, and the token of the next page, empty after the last.
func (s *Service) List(ctx context.Context, tenant string, r ListRequest) ([]Sandbox, string, error) {
	if err := r.validate(); err != nil {
		return nil, "", err
	}
	filter := r.filterHash(tenant)
	from, err := pageFrom(r.PageToken, sandboxID, filter)
	if err != nil {
		return nil, "", err
	}
	rows, err := s.store.List(ctx, tenant, r.States, r.Metadata, from, int(r.PageSize)+1)
	if err != nil {
		return nil, "", err
	}
	return cutPage(rows, r.PageSize, func(sb Sandbox) pageToken { return pageToken{sb.CreateTime, sb.ID, filter} })
}

// cutPage makes a page of rows that were read, one more than it may have, and the token of the next, empty after the last. at is the position of a row.
func cutPage[T any](rows []T, size uint32, at func(T) pageToken) ([]T, string, error) {
	if len(rows) <= int(size) {
		return rows, "", nil
	}
	rows = rows[:size]
	b, err := json.Marshal(at(rows[size-1]))
	return rows, base64.RawURLEncoding.EncodeToString(b), err
}

// pageFrom is where the page that a token names begins. The ids in the list are like id.
func pageFrom(token string, id *regexp.Regexp, filter []byte) (Page, error) {
	if token == "" {
		return Page{}, nil
	}
	var t pageToken
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || json.Unmarshal(b, &t) != nil || !id.MatchString(t.ID) {
		return Page{}, field("page_token", "must be next_page_token of the last answer, or empty for the first page")
	}
	if !bytes.Equal(t.Filter, filter) {
		return Page{}, field("page_token", "belongs to a list with other filters; keep states and labels the same while paging")
	}
	return Page{BeforeTime: t.Time, BeforeID: t.ID}, nil
}

// Ping resets the inactivity timer of a running sandbox.
func (s *Service) Ping(ctx context.Context, tenant, id string) (Sandbox, error) {
	sb, err := s.Get(ctx, tenant, id)
	if err != nil {
		return Sandbox{}, err
	}
	if sb.State != Running {
		return Sandbox{}, sb.illegal(OpPing, Running)
	}
	at, err := s.hosts.Ping(ctx, sb.HostID, id)
	if err != nil {
		return Sandbox{}, notThere(sb, err)
	}
	if err := s.store.Touch(ctx, map[string]time.Time{id: at}); err != nil {
		return Sandbox{}, err
	}
	if at.After(sb.LastActiveTime) {
		sb.LastActiveTime = at
	}
	return sb, nil
}

// Receipt tells how the sandbox was last started, with its page counters as they are now where it still runs.
func (s *Service) Receipt(ctx context.Context, tenant, id string) ([]byte, error) {
	sb, err := s.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	if sb.State == Running {
		b, err := s.hosts.Receipt(ctx, sb.HostID, id)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.log.Info("host did not give the receipt; answering the one of the start", "sandbox_id", id, "host_id", sb.HostID, "error", err)
	}
	b, err := s.store.Receipt(ctx, tenant, id)
	if err != nil || b != nil {
		return b, err
	}
	return nil, &Error{Kind: NotFound, Reason: "NO_RECEIPT", Message: "sandbox " + id + " has not been started yet", Meta: map[string]string{"sandbox_id": id}}
}

// notThere is the error of a call to the host of a running sandbox. A host that does not know it is no reason to tell a
// caller that there is no such sandbox: its state will follow within seconds.
func notThere(sb Sandbox, err error) error {
	if !errors.Is(err, NotFound) {
		return err
	}
	return &Error{
		Kind: Precondition, Reason: "SANDBOX_NOT_RUNNING", Message: fmt.Sprintf("sandbox %s is no longer on host %s", sb.ID, sb.HostID),
		Meta: map[string]string{"sandbox_id": sb.ID, "host_id": sb.HostID},
	}
}

// Location is where a sandbox runs.
type Location struct {
	HostID, Address string
	Version         int64
}

// Locate finds the host of a running sandbox. With wake, one that is being started is waited for, and a paused one with
// AutoResume is resumed first.
func (s *Service) Locate(ctx context.Context, tenant, id string, wake bool) (Location, error) {
	for range maxConflicts {
		sb, err := s.Get(ctx, tenant, id)
		if err != nil {
			return Location{}, err
		}
		switch {
		case sb.State == Running && wake && sb.TimeoutSec > 0 && s.left(ctx, sb):
			err = s.catchUp(ctx, sb)
		case sb.State == Running:
			addr, err := s.hosts.Address(ctx, sb.HostID)
			return Location{HostID: sb.HostID, Address: addr, Version: sb.Version}, err
		case wake && (sb.State == Pending || sb.State == Starting || sb.State == Resuming || sb.State == Pausing && sb.AutoResume):
			_, err = s.await(ctx, sb)
		case wake && sb.State == Paused && sb.AutoResume:
			_, err = s.Resume(ctx, tenant, ResumeRequest{SandboxID: id})
			if errors.Is(err, Precondition) {
				continue // It was changed meanwhile; decide anew.
			}
		default:
			return Location{}, notRunning(sb)
		}
		if err != nil {
			return Location{}, err
		}
	}
	return Location{}, asError(ErrConflict)
}

// left tells that the host of a sandbox whose row is RUNNING has paused it by itself, or is about to. Asking resets its timer, as
// the call that is to come would. A host out of reach tells nothing; the call will find out.
func (s *Service) left(ctx context.Context, sb Sandbox) bool {
	_, err := s.hosts.Ping(ctx, sb.HostID, sb.ID)
	return errors.Is(err, NotFound) || errors.Is(err, Precondition)
}

// catchUpTick is how often a host that is pausing a sandbox is asked, where nothing tells of its end.
const catchUpTick = 100 * time.Millisecond

// catchUp waits until the row of a sandbox says what its host has made of it, which the reconciler would write a moment later.
func (s *Service) catchUp(ctx context.Context, sb Sandbox) error {
	wake, stop := s.store.Subscribe(sb.Tenant, sb.ID)
	defer stop()
	tick := time.NewTicker(catchUpTick)
	defer tick.Stop()
	giveUp := time.NewTimer(s.timing.Unreachable)
	defer giveUp.Stop()
	for {
		list, err := s.hosts.Sandboxes(ctx, sb.HostID)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(list, func(h HostSandbox) bool { return h.ID == sb.ID }); i >= 0 {
			if list[i].State == Pausing {
				giveUp.Reset(s.timing.Unreachable) // The host bounds it.
			}
			s.judge(ctx, sb, list[i])
		}
		now, err := s.store.Get(ctx, sb.Tenant, sb.ID)
		if err != nil || now.Version != sb.Version {
			return err
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-giveUp.C:
			return notThere(sb, &Error{Kind: NotFound})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// notRunning says what to do instead.
func notRunning(sb Sandbox) *Error {
	msg := "sandbox " + sb.ID + " is " + string(sb.State) + " and does not run"
	switch {
	case sb.State == Paused:
		msg += "; resume it first, or create it with auto_resume"
	case sb.Reason != "":
		msg += ": " + sb.Reason
	}
	legal := make([]string, 0, 5)
	for _, l := range sb.State.Legal() {
		legal = append(legal, string(l))
	}
	return &Error{
		Kind: Precondition, Reason: "SANDBOX_NOT_RUNNING", Message: msg,
		Meta: map[string]string{"sandbox_id": sb.ID, "state": string(sb.State), "legal": strings.Join(legal, ",")},
	}
}
