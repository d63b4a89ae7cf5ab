package sandbox

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// AuditEvent is one call that was to change something, or several calls of one kind.
type AuditEvent struct {
	ID int64
	// UID is the name that another daemon gave the event; empty for those of this service.
	UID  string
	Time time.Time
	// Tenant and KeyID are whose call it was; RequestID is its name in logs.
	Tenant, KeyID, RequestID string
	// Method is what was called, Target what it was about, Detail what it was in particular.
	Method, Target, Detail string
	// Count is how many calls the event stands for.
	Count int64
	// Code and Reason are how it ended; empty while that is not known.
	Code, Reason string
}

// AuditFilter narrows a list; zero values mean all.
type AuditFilter struct {
	Tenant, Target, KeyID, Method, Code string
	Start, End                          time.Time
	// Before is the id that the page before ended with.
	Before int64
}

// AuditStore keeps the audit log. An event is begun before its call is carried out: a call whose event cannot be written is refused,
// and one whose process dies half-way has an event without an end. Rejected: writing it afterwards, which loses just the calls that ended badly.
//
// What this service never sees is written by the gateways: the use of sandboxes from inside, calls that go straight to other services, and what they
// refuse. They bring a name for each event, so that writing one again is harmless. Rejected: a log of each gateway's own, which nobody could search and
// which ends with its machine; and a message queue, one more thing to keep alive for what fits in a table.
type AuditStore interface {
	BeginAudit(ctx context.Context, e AuditEvent) (id int64, err error)
	EndAudit(ctx context.Context, id int64, target, code, reason string) error
	// WriteAudit writes events that have a UID, or the end and count of those that are there; all or none.
	WriteAudit(ctx context.Context, events []AuditEvent) error
	Audit(ctx context.Context, f AuditFilter, limit int) ([]AuditEvent, error)
}

// maxFilter bounds a filter, bytes.
const maxFilter = 128

// Bounds of what is written into the log at once and of each of its texts.
const (
	maxAuditEvents = 1000
	maxAuditUID    = 64 // characters
	maxAuditText   = 256
	// maxAuditSkew is how far a writer's clock may be from this one.
	maxAuditSkew = 10 * time.Minute
)

// WriteAudit writes events of other daemons. Texts are made legible, and times that cannot be are those of now.
func (s *Service) WriteAudit(ctx context.Context, events []AuditEvent) error {
	if len(events) > maxAuditEvents {
		return field("records", "must be at most %d, got %d", maxAuditEvents, len(events))
	}
	now := time.Now()
	seen := make(map[string]bool, len(events))
	for i := range events {
		e := &events[i]
		if n := len(e.UID); n == 0 || n > maxAuditUID || Legible(e.UID) != e.UID || seen[e.UID] {
			return field("records", "each must have a uid of its own of at most %d printable characters, got %q", maxAuditUID, clip(e.UID))
		}
		seen[e.UID] = true
		for _, text := range []*string{&e.Tenant, &e.KeyID, &e.RequestID, &e.Method, &e.Target, &e.Detail, &e.Code, &e.Reason} {
			*text = Legible(*text)
		}
		if e.Time.Before(now.Add(-maxAuditSkew)) || e.Time.After(now.Add(maxAuditSkew)) {
			e.Time = now
		}
		e.Count = max(1, e.Count)
	}
	if len(events) == 0 {
		return nil
	}
	return s.store.WriteAudit(ctx, events)
}

// Legible keeps out what no id has and no database takes.
func Legible(s string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > maxAuditText || r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// AuditLog reads a page of the log, newest first, and the token of the next page.
func (s *Service) AuditLog(ctx context.Context, f AuditFilter, pageSize uint32, pageToken string) ([]AuditEvent, string, error) {
	if pageSize == 0 {
		pageSize = defaultPageSize
	}
	if pageSize > maxPageSize {
		return nil, "", field("page_size", "must be 1 to %d, got %d", maxPageSize, pageSize)
	}
	for name, v := range map[string]string{"target": f.Target, "key_id": f.KeyID, "method": f.Method, "code": f.Code} {
		if len(v) > maxFilter || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' }) {
			return nil, "", field(name, "must be at most %d printable characters, got %q", maxFilter, clip(v))
		}
	}
	if f.Tenant != "" {
		if err := checkTenant(f.Tenant); err != nil {
			return nil, "", err
		}
	}
	if pageToken != "" {
		b, err := base64.RawURLEncoding.DecodeString(pageToken)
		if err == nil {
			f.Before, err = strconv.ParseInt(string(b), 10, 64)
		}
		if err != nil || f.Before <= 0 {
			return nil, "", field("page_token", "must be next_page_token of the last answer, or empty for the first page")
		}
	}
	rows, err := s.store.Audit(ctx, f, int(pageSize)+1)
	if err != nil || len(rows) <= int(pageSize) {
		return rows, "", err
	}
	rows = rows[:pageSize]
	return rows, base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(rows[pageSize-1].ID, 10))), nil
}
