package process

import "sync"

// CaptureBytes is how much of each output stream a capture keeps.
const CaptureBytes = 1 << 20

// capture keeps the beginning of each stream. Each stream has one writer; mu guards against the reader of a command that is
// given up while it still writes.
type capture struct {
	mu        sync.Mutex
	data      [2][]byte // guarded by mu
	truncated [2]bool   // guarded by mu
}

func (c *capture) write(stderr bool, data []byte) {
	i := 0
	if stderr {
		i = 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	room := CaptureBytes - len(c.data[i])
	if len(data) > room {
		data, c.truncated[i] = data[:room], true
	}
	c.data[i] = append(c.data[i], data...)
}

func (c *capture) close() {}
