package sandbox

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// AuditEvent is one call that was to change something.
type AuditEvent struct {
	ID   int64
	Time time.Time
	// Tenant and KeyID are whose call it was; RequestID is its name in logs.
	Tenant, KeyID, RequestID string
	// Method is what was called, Target what it was about.
	Method, Target string
	// Code and Reason are how it ended; empty while that is not known.
	Code, Reason string
}

// AuditFilter narrows a list; zero values mean all.
type AuditFilter struct {
	Tenant, Target, KeyID string
	Start, End            time.Time
	// Before is the id that the page before ended with.
	Before int64
}

// AuditStore keeps the audit log. An event is begun before its call is carried out: a call whose event cannot be written is refused,
// and one whose process dies half-way has an event without an end. Rejected: writing it afterwards, which loses just the calls that ended badly.
type AuditStore interface {
	BeginAudit(ctx context.Context, e AuditEvent) (id int64, err error)
	EndAudit(ctx context.Context, id int64, target, code, reason string) error
	Audit(ctx context.Context, f AuditFilter, limit int) ([]AuditEvent, error)
}

// maxFilter bounds a filter, bytes.
const maxFilter = 128

// AuditLog reads a page of the log, newest first, and the token of the next page.
func (s *Service) AuditLog(ctx context.Context, f AuditFilter, pageSize uint32, pageToken string) ([]AuditEvent, string, error) {
	if pageSize == 0 {
		pageSize = defaultPageSize
	}
	if pageSize > maxPageSize {
		return nil, "", field("page_size", "must be 1 to %d, got %d", maxPageSize, pageSize)
	}
	for name, v := range map[string]string{"target": f.Target, "key_id": f.KeyID} {
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
