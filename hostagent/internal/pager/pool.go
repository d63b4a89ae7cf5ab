package pager

import "sync"

// pool runs functions in a bounded number of goroutines; the others wait in line.
type pool struct {
	limit int
	wg    sync.WaitGroup

	mu      sync.Mutex
	running int      // guarded by mu
	line    []func() // guarded by mu
}

func newPool(limit int) *pool { return &pool{limit: limit} }

// submit never waits.
func (p *pool) submit(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == p.limit {
		p.line = append(p.line, fn)
		return
	}
	p.running++
	p.wg.Add(1)
	go p.work(fn)
}

func (p *pool) work(fn func()) {
	defer p.wg.Done()
	for fn != nil {
		fn()
		fn = p.next()
	}
}

func (p *pool) next() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.line) == 0 {
		p.running--
		return nil
	}
	fn := p.line[0]
	p.line = p.line[1:]
	return fn
}

// wait returns when all that was submitted has been done. Nothing is submitted any more.
func (p *pool) wait() { p.wg.Wait() }

// gate counts who is inside, and can be shut.
type gate struct {
	mu     sync.Mutex
	inside int           // guarded by mu
	shut   bool          // guarded by mu
	empty  chan struct{} // closed once shut and empty
}

func newGate() *gate { return &gate{empty: make(chan struct{})} }

// enter tells whether one may go in; then one has to leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	g.inside++
	return true
}

// again lets in another one for one who is inside, even if it is shut.
func (g *gate) again() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.shut && g.inside == 0 {
		close(g.empty)
	}
}

// close lets nobody in any more. empty tells when all have left.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return
	}
	g.shut = true
	if g.inside == 0 {
		close(g.empty)
	}
}
