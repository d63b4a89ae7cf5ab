package usage

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestUsageIsReadFromProc(t *testing.T) {
	proc := t.TempDir()
	for name, content := range map[string]string{
		"stat":    "cpu  100 20 30 9999 500 6 7 1000 0 0\ncpu0 50 10 15 1 1 1 1 1 0 0\ncpu1 50 10 15 1 1 1 1 1 0 0\nintr 5\n",
		"meminfo": "MemTotal:      1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n",
		"loadavg": "0.25 0.50 0.75 1/100 1234\n",
		"vmstat":  "nr_free_pages 5\noom_kill 3\n",
		"net/dev": "Inter-|\n face |\n    lo: 1 2 3 4 5 6 7 8 9 10\n  eth0: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n",
		"1/stat":  "", "22/stat": "", "self/stat": "",
	} {
		p := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u, err := Reader{Proc: proc}.Read()
	if err != nil {
		t.Fatal(err)
	}
	if u.DiskTotal <= 0 || u.DiskAvailable <= 0 {
		t.Errorf("disk: %+v", u)
	}
	u.DiskTotal, u.DiskAvailable = 0, 0
	want := Usage{VCPUs: 2, CPUBusy: 1630 * time.Millisecond, MemoryTotal: 1000 << 10, MemoryAvailable: 600 << 10, Load1: 0.25, Processes: 2,
		OOMKills: 3, NetRx: 1000, NetTx: 2000}
	if u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
}

func TestTheRealProcIsUnderstood(t *testing.T) {
	u, err := Reader{}.Read()
	if err != nil {
		t.Fatal(err)
	}
	if u.VCPUs < 1 || u.VCPUs > 4*runtime.NumCPU() || u.CPUBusy <= 0 || u.MemoryAvailable <= 0 || u.MemoryAvailable > u.MemoryTotal || u.Processes < 1 {
		t.Errorf("%+v", u)
	}
	if Uptime() <= 0 || KernelRelease() == "" || len(BootID()) != 36 {
		t.Errorf("%v, %q, %q", Uptime(), KernelRelease(), BootID())
	}
}
