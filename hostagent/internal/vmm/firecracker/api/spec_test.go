package api_test

import (
	"encoding/json"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api/apispec"
)

func TestEveryBodyIsInFirecrackersDescription(t *testing.T) {
	spec := apispec.Load(t)
	for _, x := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/", nil},
		{"PUT", "/machine-config", api.MachineConfig{VCPUCount: 2, MemSizeMiB: 128, TrackDirtyPages: true}},
		{"PUT", "/boot-source", api.BootSource{KernelImagePath: "/kernel", InitrdPath: "/initrd", BootArgs: "quiet"}},
		{"PUT", "/drives/disk", api.Drive{DriveID: "disk", PathOnHost: "/disk", CacheType: api.Writeback}},
		{"PUT", "/network-interfaces/eth0", api.NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "06:00:AC:10:00:02"}},
		{"PUT", "/entropy", api.EntropyDevice{}},
		{"PUT", "/balloon", api.Balloon{DeflateOnOOM: true}},
		{"PUT", "/actions", api.Action{ActionType: api.InstanceStart}},
		{"PUT", "/actions", api.Action{ActionType: api.FlushMetrics}},
		{"PATCH", "/vm", api.VM{State: api.Paused}},
		{"PATCH", "/vm", api.VM{State: api.Resumed}},
		{"PUT", "/snapshot/create", api.SnapshotCreate{SnapshotType: api.Diff, SnapshotPath: "/s", MemFilePath: "/m"}},
		{"PUT", "/snapshot/create", api.SnapshotCreate{SnapshotType: api.Full, SnapshotPath: "/s", MemFilePath: "/m"}},
		{"PUT", "/snapshot/load", api.SnapshotLoad{SnapshotPath: "/s", MemBackend: api.MemoryBackend{BackendType: api.Uffd, BackendPath: "/p"},
			TrackDirtyPages: true, NetworkOverrides: []api.NetworkOverride{{IfaceID: "eth0", HostDevName: "tap1"}}}},
		{"PUT", "/snapshot/load", api.SnapshotLoad{SnapshotPath: "/s", MemBackend: api.MemoryBackend{BackendType: api.Uffd, BackendPath: "/p"}, EnableDiff: true}},
	} {
		var text []byte
		if x.body != nil {
			var err error
			if text, err = json.Marshal(x.body); err != nil {
				t.Fatal(err)
			}
		}
		if err := spec.CheckRequest(x.method, x.path, text); err != nil {
			t.Error(err)
		}
	}
}

func TestTheCheckerFindsWhatIsWrong(t *testing.T) {
	spec := apispec.Load(t)
	for _, x := range []struct{ method, path, body string }{
		{"PUT", "/nowhere", `{}`}, {"DELETE", "/", ""}, {"PUT", "/actions", `{"action_type":"Explode"}`}, {"PUT", "/actions", `{}`},
		{"PUT", "/machine-config", `{"vcpu_count":33,"mem_size_mib":1}`}, {"PUT", "/machine-config", `{"vcpu_count":"1","mem_size_mib":1}`},
		{"PUT", "/snapshot/load", `{"snapshot_path":"s","unheard_of":1}`}, {"PUT", "/snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_type":"Uffd"}}`},
		{"GET", "/", `{}`},
	} {
		if spec.CheckRequest(x.method, x.path, []byte(x.body)) == nil {
			t.Errorf("%s %s %s is taken for legal", x.method, x.path, x.body)
		}
	}
	for status, body := range map[int]string{200: `{"state":"Running"}`, 204: `x`, 400: `{"message":1,"fault_message":2}`} {
		if spec.CheckAnswer("GET", "/", status, []byte(body)) == nil {
			t.Errorf("the answer %d %s is taken for legal", status, body)
		}
	}
}
