// Package server is guestd's gRPC server.
package server

import "errors"

// Main serves until the process ends.
func Main(addr string) error { return errors.New("not yet") }
