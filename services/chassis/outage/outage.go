// Package outage tells a database that is out of reach from one that refuses: the first may be asked again.
package outage

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// OfDatabase tells whether an error of pgx means that PostgreSQL cannot be reached, or went away amid the call, whose outcome is then
// not known. The end of the caller's own context is no outage.
func OfDatabase(err error) bool {
	var (
		connect *pgconn.ConnectError
		refused *pgconn.PgError
		broken  *net.OpError
	)
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &refused):
		// Class 08 is of connections; 57P is a server that shuts down, crashes or starts.
		return strings.HasPrefix(refused.Code, "08") || strings.HasPrefix(refused.Code, "57P")
	}
	return errors.As(err, &connect) || errors.As(err, &broken) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}
