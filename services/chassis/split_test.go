package chassis

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// full is a listener of a process that has no descriptors left, until it was asked a number of times.
type full struct {
	net.Listener
	left int
}

func (f *full) Accept() (net.Conn, error) {
	if f.left--; f.left < 0 {
		return nil, net.ErrClosed
	}
	return nil, syscall.EMFILE
}

func TestAcceptingWithoutDescriptorsDoesNotTakeAProcessor(t *testing.T) {
	const tries = 10
	began := time.Now()
	split(&full{left: tries}, nil).run()
	if took := time.Since(began); took < tries*acceptAgain {
		t.Errorf("it was tried %d times within %s", tries, took)
	}
}
