package machine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

func ownStartTime(t *testing.T) uint64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	n, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAProcessIsKnownByItsStartTimeToo(t *testing.T) {
	own := vmm.Handle{PID: os.Getpid(), StartTime: ownStartTime(t)}
	if !alive(own) {
		t.Error("this process is not alive")
	}
	own.StartTime++
	if alive(own) || alive(vmm.Handle{PID: 1 << 30}) {
		t.Error("another process was taken for it")
	}
}

func TestIDsLookLikeULIDs(t *testing.T) {
	if got := idText([16]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); got != "7ZZZZZZZZZZZZZZZZZZZZZZZZZ" {
		t.Errorf("the largest is %s", got)
	}
	if got := idText([16]byte{15: 33}); got != fmt.Sprintf("%024d11", 0) {
		t.Errorf("33 is %s", got)
	}
	if a, b := newID("snap_"), newID("snap_"); len(a) != 31 || a == b {
		t.Errorf("%s, %s", a, b)
	}
}
