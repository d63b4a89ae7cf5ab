package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"time"
)

// Page sizes of lists.
const (
	defaultPage = 100
	maxPage     = 1000
)

// ListRequest filters and pages.
type ListRequest struct {
	// Kind filters; empty means all kinds.
	Kind      SnapshotKind
	PageSize  uint32
	PageToken string
}

// pageToken names the last snapshot of the page before, so that what is made meanwhile, which comes before it, moves nothing.
type pageToken struct {
	Time   time.Time    `json:"t"`
	ID     string       `json:"i"`
	Kind   SnapshotKind `json:"k"`
	Tenant string       `json:"o"`
}

// List reads a page of the tenant's snapshots, newest first, and the token of the next page, empty after the last.
func (s *Service) List(ctx context.Context, tenant string, r ListRequest) ([]Snapshot, string, error) {
	if r.PageSize == 0 {
		r.PageSize = defaultPage
	}
	if r.PageSize > maxPage {
		return nil, "", Field("page_size", "must be 1 to %d, or 0 for %d, got %d", maxPage, defaultPage, r.PageSize)
	}
	var from Page
	if r.PageToken != "" {
		t, err := parsePageToken(r, tenant)
		if err != nil {
			return nil, "", err
		}
		from = Page{BeforeTime: t.Time, BeforeID: t.ID}
	}
	rows, err := s.index.List(ctx, tenant, r.Kind, from, int(r.PageSize)+1)
	if err != nil {
		return nil, "", err
	}
	if len(rows) <= int(r.PageSize) {
		return rows, "", nil
	}
	rows = rows[:r.PageSize]
	last := rows[len(rows)-1]
	b, err := json.Marshal(pageToken{Time: last.Manifest.CreateTime, ID: last.ID, Kind: r.Kind, Tenant: tenant})
	if err != nil {
		return nil, "", err
	}
	return rows, base64.RawURLEncoding.EncodeToString(b), nil
}

func parsePageToken(r ListRequest, tenant string) (t pageToken, err error) {
	b, err := base64.RawURLEncoding.DecodeString(r.PageToken)
	if err != nil || json.Unmarshal(b, &t) != nil || !IsID(t.ID) {
		return t, Field("page_token", "must be next_page_token of the last answer, or empty for the first page")
	}
	if t.Kind != r.Kind || t.Tenant != tenant {
		return t, Field("page_token", "belongs to a list with another filter; keep kind and all_kinds the same while paging")
	}
	return t, nil
}
