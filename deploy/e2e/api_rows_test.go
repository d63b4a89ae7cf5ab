package e2e

// row is one thing that the API offers. It is asked for over REST, natively over gRPC and with the covey program, and must give the same answer.
//
// REST's and gRPC's requests are made from ask, by the method's descriptor and its http annotation; rows that are none of a message and its answer
// bring functions of their own. In ask, cli, want and routes, {name} stands for what an earlier row has kept.
type row struct {
	// method is short for the gRPC method: "sandbox.SandboxService/GetSandbox" is covey.sandbox.v1's.
	method string
	// routes are the documented routes; empty: that of the method's annotation.
	routes []string
	// ask is the request as JSON.
	ask string
	// cli are the arguments of the covey program, to which --json is added.
	cli  []string
	exit int // the program's exit code
	// last takes the last message of a stream instead of the first.
	last bool
	// want are path=value pairs of the answer, separated by spaces; value * is anything that is there, and path # a list's length.
	want string
	// keep are name=path pairs of the answer.
	keep string
	// own is what is done instead, by transport; it fails the test by itself.
	own map[string]func(w *world)
	// only says why a row is not offered by all three transports.
	only string
}

// about is why what describes the gateway itself is HTTP's alone.
const about = "it describes or watches the gateway, for browsers and monitoring"

// older is why methods of the host's service are native gRPC's alone.
const older = "an older name of the same in SandboxService, for clients that know it"

// pages is why lists are not asked for by page with the program.
const pages = "covey asks for all pages of a list"

// serveLine is a program for the guest that answers a request with the request's first line.
const serveLine = `read -r line
while read -r h && [ ${#h} -gt 1 ]; do :; done
line=${line%?}
printf 'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s' ${#line} "$line"
`

// table is everything that the API offers, in an order in which it can be asked for.
var table = []row{
	{
		method: "sandbox.SandboxService/CreateSandbox",
		ask:    `{"template":"tiny","memory_mb":128,"timeout_sec":600,"metadata":{"table":"{via}"},"host_labels":{"host":"host-a"}}`,
		cli:    []string{"create", "-t", "tiny", "--memory", "128", "--timeout", "600", "-l", "table={via}", "--host-label", "host=host-a"},
		want:   "state=STATE_RUNNING timeout_sec=600 host_id=host-a metadata.table={via}", keep: "sandbox=id",
	},
	{method: "sandbox.SandboxService/GetSandbox", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"get", "{sandbox}"}, want: "id={sandbox} memory_mb=128"},
	{
		method: "sandbox.SandboxService/ListSandboxes", ask: `{"label":["table={via}"],"states":["STATE_RUNNING"]}`,
		cli: []string{"ls", "-l", "table={via}", "--state", "running"}, want: "sandboxes.#=1 sandboxes.0.id={sandbox}",
	},
	{method: "sandbox.SandboxService/WatchSandboxes", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"watch", "{sandbox}"}, want: "sandbox.state=STATE_RUNNING resume_token=*"},
	{method: "sandbox.SandboxService/PingSandbox", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"ping", "{sandbox}"}, want: "id={sandbox} last_active_time=*"},
	{method: "sandbox.SandboxService/GetRestoreReceipt", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"receipt", "{sandbox}"}, want: "sandbox_id={sandbox} kind=START_KIND_SPAWN phases.0.name=*"},
	{
		method: "guest.ProcessService/Exec", ask: `{"sandbox_id":"{sandbox}","cmd":"sh","args":["-c","echo out; echo err >&2; exit 3"]}`,
		cli: []string{"exec", "{sandbox}", "--", "sh", "-c", "echo out; echo err >&2; exit 3"}, exit: 3, want: "exit_code=3 stdout=out\n stderr=err\n usage.wall_usec=*",
	},
	{
		method: "guest.ProcessService/ExecStream", routes: []string{"GET /v1/sandboxes/{sandbox_id}/exec/stream"},
		own: map[string]func(*world){"REST": (*world).execByWebSocket, "gRPC": (*world).execByStream, "CLI": (*world).execByProgram},
	},
	{method: "guest.ProcessService/ListProcesses", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"ps", "{sandbox}"}, want: "processes.0.process_id={process} processes.0.running=true"},
	{
		method: "guest.ProcessService/SignalProcess", ask: `{"sandbox_id":"{sandbox}","process_id":"{process}","signal":"SIGTERM"}`,
		cli: []string{"kill", "-s", "SIGTERM", "{sandbox}", "{process}"},
	},
	{method: "guest.FileService/MakeDirectory", ask: `{"sandbox_id":"{sandbox}","path":"/tmp/d"}`, cli: []string{"files", "mkdir", "{sandbox}:/tmp/d"}, want: "file.type=FILE_TYPE_DIRECTORY"},
	{
		method: "guest.FileService/WriteFile", routes: []string{"POST /v1/sandboxes/{sandbox_id}/files/write", "POST /v1/sandboxes/{sandbox_id}/files/stream/write"},
		own: map[string]func(*world){"REST": (*world).writeByHTTP, "gRPC": (*world).writeByStream, "CLI": (*world).writeByProgram},
	},
	{
		method: "guest.FileService/ReadFile",
		routes: []string{"POST /v1/sandboxes/{sandbox_id}/files/read", "POST /v1/sandboxes/{sandbox_id}/files/stream/read", "GET /v1/sandboxes/{sandbox_id}/files/stream/read"},
		own:    map[string]func(*world){"REST": (*world).readByHTTP, "gRPC": (*world).readByStream, "CLI": (*world).readByProgram},
	},
	{method: "guest.FileService/StatFile", ask: `{"sandbox_id":"{sandbox}","path":"/tmp/d/a"}`, cli: []string{"files", "stat", "{sandbox}:/tmp/d/a"}, want: "path=/tmp/d/a size_bytes=3"},
	{
		method: "guest.FileService/WatchFiles", routes: []string{"GET /v1/sandboxes/{sandbox_id}/files/watch"},
		ask: `{"sandbox_id":"{sandbox}","path":"/tmp/d"}`, cli: []string{"files", "watch", "{sandbox}:/tmp/d"}, want: "ready=true",
	},
	{
		method: "guest.FileService/MoveFile", ask: `{"sandbox_id":"{sandbox}","source":"/tmp/d/a","destination":"/tmp/d/b"}`,
		cli: []string{"files", "mv", "{sandbox}:/tmp/d/a", "/tmp/d/b"}, want: "file.path=/tmp/d/b",
	},
	{method: "guest.FileService/ListFiles", ask: `{"sandbox_id":"{sandbox}","path":"/tmp/d"}`, cli: []string{"files", "ls", "{sandbox}:/tmp/d"}, want: "files.#=1 files.0.name=b"},
	{method: "guest.FileService/RemoveFile", ask: `{"sandbox_id":"{sandbox}","path":"/tmp/d","recursive":true}`, cli: []string{"files", "rm", "-r", "{sandbox}:/tmp/d"}},
	{
		method: "guest.PortService/Connect",
		routes: []string{"POST /v1/sandboxes/{sandbox_id}/ports/{port}/token", "GET /v1/sandboxes/{sandbox_id}/ports/{port}/{path}", "POST /v1/sandboxes/{sandbox_id}/ports/{port}/{path}"},
		own:    map[string]func(*world){"REST": (*world).portByHTTP, "gRPC": (*world).portByStream, "CLI": (*world).portByProgram},
	},
	{
		method: "sandbox.SandboxService/GetSandboxMetrics",
		ask:    `{"sandbox_id":"{sandbox}"}`, cli: []string{"metrics", "{sandbox}"}, want: "cpu_usec=* guest_memory_total_bytes=*",
	},
	{
		method: "sandbox.SandboxService/ReadSandboxLogs", routes: []string{"GET /v1/sandboxes/{sandbox_id}/logs"},
		own: map[string]func(*world){"REST": (*world).logsByHTTP, "gRPC": (*world).logsByStream, "CLI": (*world).logsByProgram},
	},
	{method: "host.HostService/GetSandboxMetrics", ask: `{"sandbox_id":"{sandbox}"}`, want: "cpu_usec=*", only: older},
	{method: "host.HostService/ReadConsole", own: map[string]func(*world){"gRPC": (*world).consoleByStream}, only: older},
	{method: "sandbox.SandboxService/ForkSandbox", ask: `{"sandbox_id":"{sandbox}","count":1}`, cli: []string{"fork", "-n", "1", "{sandbox}"}, want: "sandboxes.0.parent_id={sandbox}", keep: "copy=sandboxes.0.id"},
	{
		method: "sandbox.SandboxService/CreateSnapshot", ask: `{"sandbox_id":"{sandbox}","name":"table-{via}"}`,
		cli: []string{"snapshot", "create", "{sandbox}", "table-{via}"}, want: "name=table-{via}", keep: "snapshot=id",
	},
	{method: "snapshot.SnapshotService/RenameSnapshot", ask: `{"snapshot_id":"{snapshot}","name":"renamed-{via}"}`, cli: []string{"snapshot", "rename", "{snapshot}", "renamed-{via}"}, want: "name=renamed-{via}"},
	{method: "snapshot.SnapshotService/GetSnapshot", ask: `{"snapshot_id":"renamed-{via}"}`, cli: []string{"snapshot", "get", "renamed-{via}"}, want: "id={snapshot} kind=SNAPSHOT_KIND_TEMPLATE"},
	{method: "snapshot.SnapshotService/ListSnapshots", ask: `{}`, cli: []string{"snapshot", "ls"}, want: "snapshots.0.id={snapshot}"},
	{method: "snapshot.SnapshotService/ExplainSnapshot", ask: `{"snapshot_id":"{snapshot}"}`, cli: []string{"snapshot", "why", "{snapshot}"}, want: "snapshot.id={snapshot} builds.0.id=*"},
	{method: "sandbox.OperationsService/CanRestoreSnapshot", ask: `{"snapshot_id":"{snapshot}"}`, cli: []string{"snapshot", "can-restore", "{snapshot}"}, want: "snapshot_id={snapshot} verdicts.#=2 verdicts.0.can=true"},
	{method: "snapshot.SnapshotService/DeleteSnapshot", ask: `{"snapshot_id":"{snapshot}"}`, cli: []string{"snapshot", "rm", "{snapshot}"}, want: "id={snapshot}"},
	{method: "sandbox.SandboxService/PauseSandbox", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"pause", "{sandbox}"}, want: "state=STATE_PAUSED snapshot_id=*"},
	{
		method: "sandbox.SandboxService/ResumeSandbox", ask: `{"sandbox_id":"{sandbox}","host_id":"host-a","restore_policy":"RESTORE_POLICY_MEMORY_REQUIRED"}`,
		cli: []string{"resume", "--host", "host-a", "--restore-policy", "memory_required", "{sandbox}"}, want: "state=STATE_RUNNING host_id=host-a",
	},
	{method: "scheduler.HostsService/ListHosts", ask: `{}`, cli: []string{"hosts"}, want: "hosts.#=2 hosts.0.id=host-a hosts.0.state=HOST_STATE_READY"},
	{method: "scheduler.HostsService/ListHosts", ask: `{"page_size":1}`, want: "hosts.#=1 hosts.0.id=host-a next_page_token=*", keep: "hosts=next_page_token", only: pages},
	{method: "scheduler.HostsService/ListHosts", ask: `{"page_size":1,"page_token":"{hosts}"}`, want: "hosts.#=1 hosts.0.id=host-b", only: pages},
	{
		method: "scheduler.HostsService/ExplainPlacement", ask: `{"place":{"resources":{"vcpus":1,"memory_mb":256,"slots":1},"host_labels":{"host":"host-b"}}}`,
		cli: []string{"place", "--explain", "--memory", "256", "--host-label", "host=host-b"}, want: "chosen_host_id=host-b verdicts.#=2 summary=*",
	},
	{method: "scheduler.HostsService/CordonHost", ask: `{"host_id":"host-b","cordoned":true}`, cli: []string{"hosts", "cordon", "host-b"}, want: "id=host-b state=HOST_STATE_CORDONED"},
	{
		method: "sandbox.OperationsService/DrainHost", routes: []string{"POST /v1/hosts/{host_id}/drain"}, last: true,
		ask: `{"host_id":"host-b"}`, cli: []string{"hosts", "drain", "host-b"}, want: "step=DRAIN_STEP_DONE remaining=0",
	},
	{method: "scheduler.HostsService/CordonHost", ask: `{"host_id":"host-b","cordoned":false}`, cli: []string{"hosts", "uncordon", "host-b"}, want: "id=host-b state=HOST_STATE_READY"},
	{method: "scheduler.HostsService/SetBaseline", ask: `{"label":"host=host-b","common":true}`, cli: []string{"hosts", "baseline", "set", "--label", "host=host-b", "--common"}, want: "label=host=host-b features.0=*"},
	{method: "scheduler.HostsService/GetBaseline", ask: `{"label":"host=host-b"}`, cli: []string{"hosts", "baseline", "--label", "host=host-b"}, want: "baseline.label=host=host-b hosts.#=1"},
	{method: "scheduler.HostsService/ClearBaseline", ask: `{"label":"host=host-b"}`, cli: []string{"hosts", "baseline", "clear", "--label", "host=host-b"}},
	{
		method: "sandbox.KeyService/CreateKey", ask: `{"name":"table","tenant_id":"table-{via}","scopes":["read"]}`,
		cli: []string{"keys", "create", "table", "--tenant", "table-{via}", "--scope", "read"}, want: "key.tenant_id=table-{via} key.scopes.0=read secret=*",
	},
	{method: "sandbox.KeyService/CreateKey", ask: `{"name":"own-{via}"}`, cli: []string{"keys", "create", "own-{via}"}, want: "secret=*", keep: "key=key.id"},
	{method: "sandbox.KeyService/ListKeys", ask: `{}`, cli: []string{"keys", "ls"}, want: "keys.0.id={key} keys.0.name=own-{via}"},
	{method: "sandbox.KeyService/ListKeys", ask: `{"page_size":1}`, want: "keys.#=1 keys.0.id={key} next_page_token=*", keep: "keys=next_page_token", only: pages},
	{method: "sandbox.KeyService/ListKeys", ask: `{"page_size":1,"page_token":"{keys}"}`, want: "keys.#=1", only: pages},
	{method: "sandbox.KeyService/RevokeKey", ask: `{"key_id":"{key}"}`, cli: []string{"keys", "revoke", "{key}"}, want: "key.id={key} key.revoke_time=*"},
	{
		method: "sandbox.TenantService/SetQuota", ask: `{"tenant_id":"table-{via}","limits":{"sandboxes":3,"vcpus":0}}`,
		cli: []string{"quota", "set", "table-{via}", "--sandboxes", "3", "--vcpus", "0"}, want: "tenant_id=table-{via} limits.sandboxes=3",
	},
	{method: "sandbox.TenantService/GetQuota", ask: `{"tenant_id":"table-{via}"}`, cli: []string{"quota", "get", "table-{via}"}, want: "limits.sandboxes=3 in_use.sandboxes=0"},
	{method: "sandbox.TenantService/GetUsage", ask: `{}`, cli: []string{"usage"}, want: "tenant_id=default vcpu_seconds=* sandboxes.0.sandbox_id=*"},
	{
		method: "sandbox.TenantService/ListAuditEvents", ask: `{"target":"{key}","page_size":10}`, cli: []string{"audit", "--target", "{key}", "--limit", "10"},
		want: "events.0.method=RevokeKey events.0.target={key} events.0.code=OK",
	},
	{
		cli: []string{"trace", "{sandbox}", "--dir", "{dir}"}, want: "trace_id=* span_id=*",
		only: "the CLI reads the trace files of a local mesh; a mesh elsewhere sends traces by OTLP",
	},
	{method: "sandbox.SandboxService/DeleteSandbox", ask: `{"sandbox_id":"{sandbox}"}`, cli: []string{"rm", "{sandbox}"}, want: "id={sandbox} state=STATE_STOPPED"},
	{routes: []string{"GET /healthz", "GET /readyz"}, own: map[string]func(*world){"REST": (*world).health, "gRPC": (*world).healthByGRPC}, only: about},
	{
		routes: []string{"GET /openapi.yaml", "GET /openapi.json", "GET /docs/", "GET /metrics"}, own: map[string]func(*world){"REST": (*world).pages}, only: about,
	},
}
