package pager_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/coveyhq/covey/hostagent/internal/pager/pagertest"
)

func TestMain(m *testing.M) {
	pagertest.Main()
	agentMain()
	if _, err := os.Stat("/dev/userfaultfd"); err != nil || os.Geteuid() != 0 {
		println("pager: these tests need root and /dev/userfaultfd (Linux 6.1)")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
