package rpc_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestKeysAreListedInPages(t *testing.T) {
	r := newMesh(t).replica("one")
	var want []string
	for i := range 5 {
		made, err := r.keys.CreateKey(as(t, "acme"), &sandboxv1.CreateKeyRequest{Name: fmt.Sprint("k", i)})
		if err != nil {
			t.Fatal(err)
		}
		want = append([]string{made.GetKey().GetId()}, want...)
	}
	if _, err := r.keys.CreateKey(as(t, "other"), &sandboxv1.CreateKeyRequest{Name: "k"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	var second string
	for q, pages := (&sandboxv1.ListKeysRequest{PageSize: 2}), 1; ; pages++ {
		page, err := r.keys.ListKeys(as(t, "acme"), q)
		if err != nil || len(page.GetKeys()) > 2 {
			t.Fatalf("page %d: %v, %v", pages, page, err)
		}
		for _, k := range page.GetKeys() {
			got = append(got, k.GetId())
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
		second = q.PageToken
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pages have %v, want %v", got, want)
	}
	for _, x := range []struct {
		tenant, field string
		q             *sandboxv1.ListKeysRequest
	}{
		{"acme", "page_size", &sandboxv1.ListKeysRequest{PageSize: 1001}}, {"acme", "page_token", &sandboxv1.ListKeysRequest{PageToken: "x"}},
		{"other", "page_token", &sandboxv1.ListKeysRequest{PageToken: second}},
	} {
		_, err := r.keys.ListKeys(as(t, x.tenant), x.q)
		wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", x.field)
	}
}
