package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

func entropy() []byte { return make([]byte, 64) }

func TestExplore(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	m := newMachine(t, "tiny", 256)
	began := time.Now()
	m.start()
	c := m.connect(ctx)
	if _, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("boot %v", time.Since(began))
	for range 5 {
		began = time.Now()
		t.Log(c.sh(ctx, t, "", "id; cat /proc/uptime"), time.Since(began))
	}
	began = time.Now()
	_, err := c.AfterRestore(ctx, &guestv1.AfterRestoreRequest{RestoreId: "a", SandboxId: "sb_1", NowUnixNs: time.Now().UnixNano(), Entropy: entropy(), Hostname: "one", MachineId: "0123456789abcdef0123456789abcdef", Env: map[string]string{"A": "b"}, Nameservers: []string{"1.1.1.1"}})
	t.Log(err, time.Since(began))
	if _, err := c.Quiesce(ctx, &guestv1.QuiesceRequest{SyncOnly: true}); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("JIT") == "asm" {
		st, err := c.files.ReadFile(ctx, &guestv1.ReadFileRequest{Path: "/proc/kallsyms", User: "root"})
		if err != nil {
			t.Fatal(err)
		}
		f, _ := os.Create("/tmp/kallsyms")
		if err := recvAll(st.Recv, func(r *guestv1.ReadFileResponse) { f.Write(r.GetData()) }); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	m.save()
	all := map[string][]time.Duration{}
	names := []string{}
	for i := range 14 {
		last := time.Now()
		lastCPU := time.Duration(0)
		start := last
		mark := func(s string) {
			n := time.Now()
			cpu := m.cpuTime()
			if len(all) == 0 || all["cpu "+s] == nil {
				names = append(names, "cpu "+s)
			}
			all["cpu "+s] = append(all["cpu "+s], cpu-lastCPU)
			lastCPU = cpu
			if all[s] == nil {
				names = append(names, s)
			}
			all[s] = append(all[s], n.Sub(last))
			last = n
			if os.Getenv("JIT") == "asm" && i == 8 {
				m.do("human-monitor-command", map[string]any{"command-line": "logfile /tmp/jit-after-" + s})
				m.do("human-monitor-command", map[string]any{"command-line": "log in_asm"})
			}
			if os.Getenv("JIT") != "" && i == 8 {
				defer func() { last = time.Now() }()
				var text string
				json.Unmarshal(m.do("human-monitor-command", map[string]any{"command-line": "info jit"}), &text)
				for _, l := range strings.Split(text, "\n") {
					if strings.Contains(l, "gen code size") || strings.Contains(l, "TB count") || strings.Contains(l, "TB avg") || strings.Contains(l, "TLB") {
						t.Log(s, l)
					}
				}
			}
		}
		m.restore()
		mark("restored")
		c = m.connect(ctx)
		mark("connected")
		if _, err := c.Health(ctx, &guestv1.HealthRequest{}); err != nil {
			t.Fatal(err)
		}
		mark("health")
		_, err = c.AfterRestore(ctx, &guestv1.AfterRestoreRequest{RestoreId: "b" + fmt.Sprint(i), SandboxId: "sb_1", NowUnixNs: time.Now().UnixNano(), Entropy: entropy(), Hostname: fmt.Sprint("two", i), MachineId: fmt.Sprintf("1123456789abcdef0123456789abcd%02d", i)})
		if err != nil {
			t.Fatal(err)
		}
		mark("afterrestore")
		c.sh(ctx, t, "", "true")
		mark("exec")
		last = start
		mark("total")
		last = time.Now()
		c.sh(ctx, t, "", "true")
		mark("exec2")
		m.save()
	}
	for _, n := range names {
		slices.Sort(all[n])
		t.Logf("%s min %v median %v", n, all[n][0], all[n][len(all[n])/2])
	}
}
