package server

import (
	"context"
	"os"
	"testing"

	"github.com/coveyhq/covey/guest/internal/account"
	"github.com/coveyhq/covey/guest/internal/process"
)

func TestAProcessWhoseStreamBreaksAsItsGuestIsRestoredGoesOnAndCountsOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("commands are started as other users: needs root")
	}
	table, err := process.NewTable(account.Database{})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, brokeFirst := range []bool{true, false} {
		p, err := table.Start(process.Spec{Cmd: "/bin/sh", Args: []string{"-c", "read x; exit 9"}, User: "root"})
		if err != nil {
			t.Fatal(err)
		}
		c := newClients()
		_, s, done := c.open(context.Background())
		c.snapshotAhead()
		if brokeFirst {
			c.left(p, s)
		}
		if n := c.restored("the host"); n != 1 {
			t.Errorf("%d streams were ended, and there was one", n)
		}
		if !brokeFirst {
			c.left(p, s)
		}
		done()
		if n := c.restored("the host"); n != 0 {
			t.Errorf("%d streams were ended by the next restore", n)
		}
		_ = p.Write([]byte("x\n")) // Its exit says whether it was there to read.
		<-p.Done()
		if e := p.Exit(); e.Code != 9 {
			t.Errorf("it did not go on: %+v", e)
		}
	}
}
