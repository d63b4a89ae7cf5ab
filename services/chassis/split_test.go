package chassis

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// full is a listener of a process that has no descriptors left, until it is closed.
type full struct {
	net.Listener
	until time.Time
	asked int
}

func (f *full) Accept() (net.Conn, error) {
	f.asked++
	if time.Now().After(f.until) {
		return nil, net.ErrClosed
	}
	return nil, syscall.EMFILE
}

func TestAcceptingWithoutDescriptorsDoesNotTakeAProcessor(t *testing.T) {
	l := &full{until: time.Now().Add(10 * acceptAgain)}
	split(l, nil).run()
	if l.asked < 2 || l.asked > 12 {
		t.Errorf("it was tried %d times", l.asked)
	}
}
