package relay

import "sync"

// replayLimit bounds what is kept of a call besides its first frame, bytes.
const replayLimit = 64 << 10

// replay keeps what was sent, to be sent again if the first connection was the wrong one.
type replay struct {
	mu     sync.Mutex // guards the rest
	frames []frame
	size   int
	off    bool // nothing is kept any more
}

// add keeps a frame, with a reference of its own, or gives up if that is too much.
func (r *replay) add(f *frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off {
		return
	}
	if len(r.frames) > 0 {
		if r.size += f.data.Len(); r.size > replayLimit {
			r.clear()
			return
		}
	}
	r.frames = append(r.frames, f.share())
}

// drop gives up what is kept.
func (r *replay) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
}

func (r *replay) clear() {
	freeAll(r.frames)
	r.frames, r.off = nil, true
}

// intact tells whether everything that was sent is kept.
func (r *replay) intact() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.off
}

// take returns what is kept, now the caller's, and keeps nothing more.
func (r *replay) take() []frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	frames := r.frames
	r.frames, r.off = nil, true
	return frames
}

func freeAll(frames []frame) {
	for i := range frames {
		frames[i].free()
	}
}
