package outage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coveyhq/covey/services/chassis/outage"
)

func TestADatabaseThatWentAwayIsToldFromOneThatRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":            {nil, false},
		"no rows":            {pgx.ErrNoRows, false},
		"unique violation":   {&pgconn.PgError{Code: "23505"}, false},
		"killed":             {&pgconn.PgError{Code: "57P01"}, true},
		"starting":           {fmt.Errorf("connect: %w", &pgconn.PgError{Code: "57P03"}), true},
		"broken pipe":        {fmt.Errorf("write failed: %w", &net.OpError{Op: "write", Net: "unix", Err: syscall.EPIPE}), true},
		"end amid an answer": {fmt.Errorf("query: %w", io.ErrUnexpectedEOF), true},
		"caller's deadline":  {fmt.Errorf("timeout: %w", context.DeadlineExceeded), false},
		"caller went away":   {errors.Join(context.Canceled, io.EOF), false},
	} {
		if got := outage.OfDatabase(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
