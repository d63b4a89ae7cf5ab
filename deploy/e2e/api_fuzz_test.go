package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/coveyhq/covey/deploy/mesh"
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

// exampleSandbox is the id of the description's examples.
const exampleSandbox = "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"

// unfuzzed are operations that are left out, by id: streams that end when the client goes, which the fuzzer takes for hanging; a program's own answer, which
// is 502 where there is none; and what would end the sandbox, the key and the hosts that all others work with: the fuzzer finds their ids in answers.
var unfuzzed = []string{
	"SandboxService_WatchSandboxes", "FileService_WatchFiles", "Gateway_PortGet", "Gateway_PortPost",
	"SandboxService_DeleteSandbox", "KeyService_RevokeKey", "HostsService_CordonHost", "OperationsService_DrainHost",
}

// TestAFuzzerFindsNoServerErrorAndNoUndocumentedStatus runs schemathesis on the description, with a tenant of its own whose quota bounds what it makes.
func TestAFuzzerFindsNoServerErrorAndNoUndocumentedStatus(t *testing.T) {
	ctx := start(t)
	st := fuzzer(t, ctx)
	made, err := s.keys.CreateKey(ctx, &sandboxv1.CreateKeyRequest{Name: "fuzz", Scopes: []string{"read", "write", "admin"}, TenantId: "fuzz"})
	if err != nil {
		t.Fatal(err)
	}
	quota := &sandboxv1.Quota{Sandboxes: proto.Uint32(2), Vcpus: proto.Uint32(2), MemoryMb: proto.Uint64(1024), Snapshots: proto.Uint32(2)}
	if _, err := sandboxv1.NewTenantServiceClient(s.conn).SetQuota(ctx, &sandboxv1.SetQuotaRequest{TenantId: "fuzz", Limits: quota}); err != nil {
		t.Fatal(err)
	}
	own := as(context.WithoutCancel(t.Context()), made.GetSecret())
	t.Cleanup(func() { emptyTenant(t, own) })
	sb, err := s.sandboxes.CreateSandbox(own, &sandboxv1.CreateSandboxRequest{Template: "tiny", MemoryMb: 256, AutoResume: true})
	if err != nil {
		t.Fatal(err)
	}
	description := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(description, describedFor(t, sb.GetSandbox().GetId()), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"run", description, "--url", s.m.URL, "--header", "Authorization: Bearer " + made.GetSecret(),
		"--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
		"--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--workers", "2", "--seed", "1", "--no-shrink", "--continue-on-failure",
		"--request-timeout", "120", "--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off", "--no-color",
	}
	for _, id := range unfuzzed {
		args = append(args, "--exclude-operation-id", id)
	}
	bounded, cancel := context.WithTimeout(ctx, overrun*2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(bounded, st, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("schemathesis: %v\n%s", err, out)
	}
	t.Logf("%s: %s", time.Since(began).Round(time.Second), summary(out))
}

// summary is the end of the fuzzer's report.
func summary(out []byte) []byte {
	if i := bytes.LastIndex(out, []byte("SUMMARY")); i >= 0 {
		return out[i:]
	}
	return out
}

// describedFor is the gateway's description whose examples name a sandbox that is there, and hosts that are not.
func describedFor(t *testing.T, id string) []byte {
	t.Helper()
	status, doc := caller{t, start(t)}.call("GET", "/openapi.json", "")
	if status != 200 {
		t.Fatalf("%d", status)
	}
	doc = strings.NewReplacer(exampleSandbox, id, `"host-a"`, `"host-none"`).Replace(doc)
	var d map[string]any
	if err := json.Unmarshal([]byte(doc), &d); err != nil {
		t.Fatal(err)
	}
	// A console that is followed never ends.
	logs := d["paths"].(map[string]any)["/v1/sandboxes/{sandbox_id}/logs"].(map[string]any)["get"].(map[string]any)
	var params []any
	for _, p := range logs["parameters"].([]any) {
		if p.(map[string]any)["name"] != "follow" {
			params = append(params, p)
		}
	}
	logs["parameters"] = params
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// emptyTenant deletes what the fuzzer has made.
func emptyTenant(t *testing.T, ctx context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, overrun*time.Minute)
	defer cancel()
	list, err := s.sandboxes.ListSandboxes(ctx, &sandboxv1.ListSandboxesRequest{PageSize: 100})
	if err != nil {
		t.Error(err)
	}
	for _, sb := range list.GetSandboxes() {
		if _, err := s.sandboxes.DeleteSandbox(ctx, &sandboxv1.DeleteSandboxRequest{SandboxId: sb.GetId()}); err != nil {
			t.Errorf("delete %s: %v", sb.GetId(), err)
		}
	}
	snaps, err := s.snapshots.ListSnapshots(ctx, &snapshotv1.ListSnapshotsRequest{PageSize: 100})
	if err != nil {
		t.Error(err)
	}
	for _, sn := range snaps.GetSnapshots() {
		if _, err := s.snapshots.DeleteSnapshot(ctx, &snapshotv1.DeleteSnapshotRequest{SnapshotId: sn.GetId()}); err != nil {
			t.Errorf("delete %s: %v", sn.GetId(), err)
		}
	}
}

// fuzzer is the program, installed once per list of versions; the test is skipped where it cannot be had.
func fuzzer(t *testing.T, ctx context.Context) string {
	t.Helper()
	list, err := filepath.Abs("testdata/schemathesis.txt")
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mesh.CacheDir(), fmt.Sprintf("schemathesis-%x", sha256.Sum256(pinned))[:29])
	st, whole := filepath.Join(dir, "bin", "st"), filepath.Join(dir, "whole")
	if _, err := os.Stat(whole); err == nil {
		return st
	}
	ctx, cancel := context.WithTimeout(ctx, overrun*2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "/usr/bin/python3", "-m", "venv", "--clear", dir).CombinedOutput(); err != nil {
		t.Fatalf("python3 -m venv: %v\n%s\nDebian's package python3-venv has it", err, out)
	}
	install := exec.CommandContext(ctx, filepath.Join(dir, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement", list)
	if out, err := install.CombinedOutput(); err != nil {
		if e := errors.Join(os.RemoveAll(dir), ctx.Err()); e != nil {
			t.Log(e)
		}
		t.Skipf("schemathesis is not cached and cannot be installed, so the description is not fuzzed: %v\n%s", err, out)
	}
	if err := os.WriteFile(whole, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return st
}
