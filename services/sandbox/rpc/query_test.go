package rpc_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
)

func TestPagesAreStableWhileSandboxesAreMade(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	var want []string
	for i := range 7 {
		want = append(want, r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Metadata: map[string]string{"i": fmt.Sprint(i)}}).GetId())
	}
	var got []string
	q := &sandboxv1.ListSandboxesRequest{PageSize: 2}
	for {
		resp, err := r.ListSandboxes(as(t, "acme"), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, sb := range resp.GetSandboxes() {
			got = append(got, sb.GetId())
		}
		r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
		if q.PageToken = resp.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	if len(got) != len(want) {
		t.Fatalf("paged %d of %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[len(want)-1-i] {
			t.Fatalf("position %d: %v is not %v reversed", i, got, want)
		}
	}
	first, err := r.ListSandboxes(as(t, "acme"), q)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{PageToken: first.GetNextPageToken(), Label: []string{"i=1"}})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token", "filters")
	_, err = r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{PageToken: "rubbish"})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token")
	_, err = r.ListSandboxes(as(t, "acme"), &sandboxv1.ListSandboxesRequest{PageSize: 1001})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_size", "1000")
}

func TestNoTenantSeesOrMovesAnothersSandbox(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	id := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"}).GetId()
	ctx := as(t, "mallory")
	for method, call := range map[string]func() error{
		"Get": func() error { _, err := r.GetSandbox(ctx, &sandboxv1.GetSandboxRequest{SandboxId: id}); return err },
		"Delete": func() error {
			_, err := r.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: id})
			return err
		},
		"Pause": func() error { _, err := r.PauseSandbox(ctx, &sandboxv1.PauseSandboxRequest{SandboxId: id}); return err },
		"Resume": func() error {
			_, err := r.ResumeSandbox(ctx, &sandboxv1.ResumeSandboxRequest{SandboxId: id})
			return err
		},
		"Ping": func() error { _, err := r.PingSandbox(ctx, &sandboxv1.PingSandboxRequest{SandboxId: id}); return err },
		"Fork": func() error { _, err := r.ForkSandbox(ctx, &sandboxv1.ForkSandboxRequest{SandboxId: id}); return err },
		"Snapshot": func() error {
			_, err := r.CreateSnapshot(ctx, &sandboxv1.CreateSnapshotRequest{SandboxId: id, Name: "x"})
			return err
		},
		"Receipt": func() error {
			_, err := r.GetRestoreReceipt(ctx, &sandboxv1.GetRestoreReceiptRequest{SandboxId: id})
			return err
		},
		"Watch": func() error {
			s, err := r.WatchSandboxes(ctx, &sandboxv1.WatchSandboxesRequest{SandboxId: id})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"Locate": func() error {
			_, err := r.locate.LocateSandbox(ctx, &sandboxv1.LocateSandboxRequest{SandboxId: id, TenantId: "mallory", Wake: true})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.NotFound {
			t.Errorf("%s of another's sandbox: %v", method, err)
		}
	}
	if list, err := r.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{}); err != nil || len(list.GetSandboxes()) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	m.registry.add("snap_01ARZ3NDEKTSV4RRFFQ69G5FAV", "golden", "host-a")
	for _, name := range []string{"golden", "snap_01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
		_, err := r.CreateSandbox(ctx, &sandboxv1.CreateSandboxRequest{Template: name})
		wantError(t, err, codes.NotFound, "TEMPLATE_NOT_FOUND")
	}
	if sb := r.get(t, id); sb.GetState() != stRunning || sb.GetVersion() != 3 {
		t.Fatalf("it was changed: %v", sb)
	}
}

// next reads a watch until a sandbox is in a state.
func next(t *testing.T, w grpc.ServerStreamingClient[sandboxv1.WatchSandboxesResponse], id string, want sandboxv1.State) *sandboxv1.WatchSandboxesResponse {
	t.Helper()
	for {
		m, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSandbox().GetId() == id && m.GetSandbox().GetState() == want {
			return m
		}
	}
}

func TestAWatchShowsWhatIsThenEveryChangeAndContinuesAnywhere(t *testing.T) {
	m := newMesh(t)
	r, other := m.replica("one"), m.replica("two")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny", Env: map[string]string{"TOKEN": "secret"}})
	w, err := other.WatchSandboxes(as(t, "acme"), &sandboxv1.WatchSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token := next(t, w, sb.GetId(), stRunning).GetResumeToken()
	if token == "" {
		t.Fatal("no token after the present state")
	}
	// Changes come as they happen, and not when it is looked for them: on a busy machine not every time within a second.
	tries := 0
	for quick := false; !quick; r.resume(t, sb.GetId()) {
		began, before := time.Now(), r.get(t, sb.GetId())
		r.pause(t, sb.GetId())
		if v := next(t, w, sb.GetId(), sandboxv1.State_STATE_PAUSING).GetSandbox(); v.GetVersion() != before.GetVersion()+1 {
			t.Fatalf("first change: %v", v)
		}
		token = next(t, w, sb.GetId(), stPaused).GetResumeToken()
		quick = time.Since(began) < time.Second
		if tries++; tries == 20 && !quick {
			t.Fatalf("the last change of %d came after %s", tries, time.Since(began))
		}
	}
	again, err := r.WatchSandboxes(as(t, "acme"), &sandboxv1.WatchSandboxesRequest{ResumeToken: token, SandboxId: sb.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	m1, err := again.Recv()
	for err == nil && m1.GetSandbox().GetState() == stPaused && m1.GetSandbox().GetDurable() { // Noted meanwhile, or not.
		m1, err = again.Recv()
	}
	if err != nil || m1.GetSandbox().GetState() != sandboxv1.State_STATE_RESUMING {
		t.Fatalf("continued with %v, %v", m1, err)
	}
	next(t, again, sb.GetId(), stRunning)
	events, err := r.store.Events(t.Context(), "acme", sb.GetId(), 0, 100)
	if err != nil || len(events) == 0 {
		t.Fatal(events, err)
	}
	for _, e := range events {
		if e.Sandbox.Env != nil {
			t.Fatal("an event has the environment")
		}
	}
	bad, err := r.WatchSandboxes(as(t, "acme"), &sandboxv1.WatchSandboxesRequest{ResumeToken: "999999"})
	if err == nil {
		_, err = bad.Recv()
	}
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "resume_token")
}

func TestPingIsNoted(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	sb := r.create(t, &sandboxv1.CreateSandboxRequest{Template: "tiny"})
	resp, err := r.PingSandbox(as(t, "acme"), &sandboxv1.PingSandboxRequest{SandboxId: sb.GetId()})
	if err != nil || !resp.GetSandbox().GetLastActiveTime().AsTime().After(sb.GetLastActiveTime().AsTime()) {
		t.Fatalf("ping: %v, %v", resp, err)
	}
	if got := r.get(t, sb.GetId()).GetLastActiveTime().AsTime(); got.Before(sb.GetLastActiveTime().AsTime()) {
		t.Fatalf("row has %s", got)
	}
	r.pause(t, sb.GetId())
	_, err = r.PingSandbox(as(t, "acme"), &sandboxv1.PingSandboxRequest{SandboxId: sb.GetId()})
	wantError(t, err, codes.FailedPrecondition, "ILLEGAL_STATE", "PAUSED", "resume")
}

func TestKeysAreShownOnceAuthenticateAndEnd(t *testing.T) {
	m := newMesh(t)
	r := m.replica("one")
	admin := metadata.AppendToOutgoingContext(as(t, "acme"), "covey-scopes", "admin")
	made, err := r.keys.CreateKey(as(t, "acme"), &sandboxv1.CreateKeyRequest{Name: "ci"})
	if err != nil || len(made.GetSecret()) != 47 || made.GetSecret()[:4] != "cvy_" {
		t.Fatalf("key: %v, %v", made, err)
	}
	auth := func(key string) (*sandboxv1.AuthenticateResponse, error) {
		return r.locate.Authenticate(context.Background(), &sandboxv1.AuthenticateRequest{ApiKey: key})
	}
	who, err := auth(made.GetSecret())
	if err != nil || who.GetTenantId() != "acme" || who.GetKeyId() != made.GetKey().GetId() || fmt.Sprint(who.GetScopes()) != "[read write]" {
		t.Fatalf("authenticated: %v, %v", who, err)
	}
	list, err := r.keys.ListKeys(as(t, "acme"), &sandboxv1.ListKeysRequest{})
	if err != nil || len(list.GetKeys()) != 1 || list.GetKeys()[0].GetLastUseTime() == nil {
		t.Fatalf("list: %v, %v", list, err)
	}
	for _, q := range []*sandboxv1.CreateKeyRequest{{Name: "x", TenantId: "other"}, {Name: "x", Scopes: []string{"admin"}}} {
		_, err = r.keys.CreateKey(as(t, "acme"), q)
		wantError(t, err, codes.PermissionDenied, "ADMIN_ONLY")
		if _, err := r.keys.CreateKey(admin, q); err != nil {
			t.Fatal(err)
		}
	}
	_, err = r.keys.CreateKey(admin, &sandboxv1.CreateKeyRequest{Name: "x", Scopes: []string{"root"}})
	wantError(t, err, codes.InvalidArgument, "INVALID_FIELD", "scopes", "read, write, admin")
	_, err = r.keys.RevokeKey(as(t, "mallory"), &sandboxv1.RevokeKeyRequest{KeyId: made.GetKey().GetId()})
	wantError(t, err, codes.NotFound, "KEY_NOT_FOUND")
	if _, err := r.keys.RevokeKey(as(t, "acme"), &sandboxv1.RevokeKeyRequest{KeyId: made.GetKey().GetId()}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{made.GetSecret(), "cvy_" + made.GetSecret()[5:] + "A", "", "x"} {
		_, err := auth(key)
		wantError(t, err, codes.Unauthenticated, "INVALID_API_KEY")
	}
}
