package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// Errors of a Pool.
var (
	// ErrFull: as many slots are handed out as the pool may have.
	ErrFull = errors.New("all network slots are taken")
	// ErrClosed: the pool is closed.
	ErrClosed = errors.New("the pool of network slots is closed")
)

// Config describes a Pool.
type Config struct {
	// Owner names the agent, uniquely on its machine and the same after each restart; its state directory does.
	Owner string
	// Dir is where the agents of a machine agree on ranges. Default /run/covey/net.
	Dir string
	// Warm is how many slots are kept ready.
	Warm int
	// Max is the most slots at once, at most 256, which is the default.
	Max int
	// Nameservers can be asked by every guest whose network is not disabled, wherever they are, unless its policy denies them.
	Nameservers []netip.Addr
	Log         *slog.Logger
}

const (
	defaultDir    = "/run/covey/net"
	directoryLock = "lock"
	// builders is how many slots are built or destroyed at once: most of the work is under one lock of the kernel.
	builders = 4
)

// state is what a slot number is used for.
type state int

const (
	free     state = iota
	building       // being built or destroyed
	ready
	held  // handed out
	found // left by a former agent: to be adopted or swept
)

// Pool builds slots ahead and hands them out. It implements machine.Slots and is safe for concurrent use.
type Pool struct {
	conf    Config
	log     *slog.Logger
	home    home
	netlink *netlink.Handle
	rng     rng
	places  chan struct{} // holds one of builders for each that works
	wg      sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	states  [rangeSlots]state
	warm    []*Slot
	waiting []chan outcome
	closed  bool
}

var (
	_ machine.Slots = (*Pool)(nil)
	_ machine.Slot  = (*Slot)(nil)
)

// outcome is what a waiting Acquire gets.
type outcome struct {
	slot *Slot
	err  error
}

// NewPool takes the owner's range, prepares the host and begins to build slots. Slots of a former agent of the owner are left alone
// until they are adopted or swept.
func NewPool(_ context.Context, conf Config) (_ *Pool, err error) {
	if conf.Dir == "" {
		conf.Dir = defaultDir
	}
	if conf.Max == 0 {
		conf.Max = rangeSlots
	}
	if conf.Owner == "" || conf.Max < 1 || conf.Max > rangeSlots || conf.Warm < 0 {
		return nil, fmt.Errorf("network: an owner must be named, Max be 1 to %d and Warm not negative; got %q, %d and %d", rangeSlots, conf.Owner, conf.Max, conf.Warm)
	}
	p := &Pool{conf: conf, log: conf.Log, places: make(chan struct{}, builders)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("network: %w", err)
			p.closeFiles()
		}
	}()
	if p.home, err = newHome(); err != nil {
		return nil, err
	}
	if p.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	if err := p.prepareHost(); err != nil {
		return nil, err
	}
	names, err := namespacesOf(p.rng.n)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		if n, ok := slotNumber(p.rng.n, name); ok {
			p.states[n] = found
		}
	}
	p.refill()
	return p, nil
}

func (p *Pool) prepareHost() error {
	lock, err := lockFile(filepath.Join(p.conf.Dir, directoryLock), true)
	if err != nil {
		return err
	}
	defer lock.Close()
	if p.rng, err = takeRange(p.conf.Dir, p.conf.Owner); err != nil {
		return err
	}
	if err := enableForwarding(p.conf.Dir); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	return hostRules(conn, p.rng.n)
}

func (p *Pool) closeFiles() {
	if p.home.file != nil {
		p.home.file.Close()
	}
	if p.netlink != nil {
		p.netlink.Close()
	}
	if p.rng.file != nil {
		p.rng.file.Close()
	}
}

// Acquire hands out a slot with a policy: a *machine.FieldError where that is none, ErrFull, ErrClosed.
func (p *Pool) Acquire(ctx context.Context, n machine.Network) (machine.Slot, error) {
	pol, err := parsePolicy(n)
	if err != nil {
		return nil, err
	}
	s, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.apply(s, pol); err != nil {
		return nil, errors.Join(err, s.Release(ctx))
	}
	return s, nil
}

// take takes a slot that is ready, or waits for one.
func (p *Pool) take(ctx context.Context) (*Slot, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if i := len(p.warm) - 1; i >= 0 {
		s := p.warm[i]
		p.warm = p.warm[:i]
		p.states[s.n] = held
		p.refill()
		p.mu.Unlock()
		return s, nil
	}
	if len(p.waiting) >= p.conf.Max-p.count(held)-p.count(found) {
		p.mu.Unlock()
		return nil, ErrFull
	}
	result := make(chan outcome, 1)
	p.waiting = append(p.waiting, result)
	p.refill()
	p.mu.Unlock()
	select {
	case o := <-result:
		return o.slot, o.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.waiting = slices.DeleteFunc(p.waiting, func(c chan outcome) bool { return c == result })
	p.mu.Unlock()
	select {
	case o := <-result: // it came at the same time
		if o.slot != nil {
			p.scrub(o.slot)
		}
	default:
	}
	return nil, context.Cause(ctx)
}

// count counts slots. Callers hold mu.
func (p *Pool) count(s state) (n int) {
	for _, is := range p.states {
		if is == s {
			n++
		}
	}
	return n
}

// refill begins to build what is lacking. Callers hold mu.
func (p *Pool) refill() {
	for !p.closed {
		used := 0
		for _, is := range p.states {
			if is != free {
				used++
			}
		}
		if used >= p.conf.Max || p.count(building)+len(p.warm) >= p.conf.Warm+len(p.waiting) {
			return
		}
		n := slices.Index(p.states[:], free)
		p.states[n] = building
		p.wg.Go(func() { p.buildOne(n) })
	}
}

func (p *Pool) buildOne(n int) {
	p.places <- struct{}{}
	s, err := p.build(n)
	<-p.places
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil && len(p.waiting) > 0:
		p.states[n] = held
	case err == nil:
		p.states[n] = ready
		p.warm = append(p.warm, s)
		return
	default:
		// Not tried again until somebody asks: what fails now would fail for ever.
		p.log.Error("a network slot could not be built", "slot", slotID(p.rng.n, n), "error", err)
		p.states[n] = free
	}
	if len(p.waiting) > 0 {
		p.waiting[0] <- outcome{s, err}
		p.waiting = p.waiting[1:]
	}
	if len(p.waiting) > 0 {
		p.refill()
	}
}

// scrub destroys a slot that was handed out, in the background. Once the pool is closed, it is left to the next agent.
func (p *Pool) scrub(s *Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.states[s.n] = building
	p.wg.Go(func() {
		p.places <- struct{}{}
		err := p.destroy(s)
		<-p.places
		p.mu.Lock()
		defer p.mu.Unlock()
		p.states[s.n] = free
		if err != nil {
			// Whoever builds the slot next tries again.
			p.log.Warn("a network slot could not be destroyed", "slot", s.id, "error", err)
		}
		p.refill()
	})
}

// apply gives a slot, which is built with the default policy, its own.
func (p *Pool) apply(s *Slot, pol policy) error {
	if pol.isDefault() {
		return nil
	}
	return p.reapply(s, pol)
}

func (p *Pool) reapply(s *Slot, pol policy) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(s.ns.Fd())))
	if err != nil {
		return fmt.Errorf("slot %s: %w", s.id, err)
	}
	if err := applyPolicy(conn, p.conf.Nameservers, pol); err != nil {
		return fmt.Errorf("slot %s: policy: %w", s.id, err)
	}
	if len(pol.allow) == 0 || pol.disabled {
		return nil
	}
	if err := p.allow(s, pol); err != nil {
		return fmt.Errorf("slot %s: policy on the host: %w", s.id, err)
	}
	return nil
}

// Adopt takes a slot that a former agent of the owner had handed out, with its policy.
func (p *Pool) Adopt(_ context.Context, id string, n machine.Network) (machine.Slot, error) {
	pol, err := parsePolicy(n)
	if err != nil {
		return nil, err
	}
	num, ok := slotNumber(p.rng.n, id)
	if !ok {
		return nil, fmt.Errorf("slot %q is not of range %d, which is this agent's", id, p.rng.n)
	}
	p.mu.Lock()
	ok = p.states[num] == found && !p.closed
	if ok {
		p.states[num] = held
	}
	p.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("slot %s is not one that a former agent has left", id)
	}
	s, err := p.open(num)
	if err == nil {
		err = p.reapply(s, pol)
	}
	if err != nil {
		p.mu.Lock()
		p.states[num] = found
		p.mu.Unlock()
		return nil, fmt.Errorf("slot %s: %w", id, err)
	}
	return s, nil
}

// links lists the host's devices. Where others make and remove theirs meanwhile, the kernel says that its list may lack some, and is asked again.
func (p *Pool) links() (links []netlink.Link, err error) {
	for range 100 {
		if links, err = p.netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return links, err
}

// Sweep destroys what a former agent of the owner has left and is neither kept nor adopted. It tells what it destroyed.
func (p *Pool) Sweep(_ context.Context, keep []string) (removed []string, err error) {
	links, err := p.links()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	names, err := namespacesOf(p.rng.n)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	left := map[int]string{}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	for _, name := range names {
		if n, ok := slotNumber(p.rng.n, name); ok && !slices.Contains(keep, name) {
			left[n] = name
		}
	}
	for _, n := range slices.Sorted(maps.Keys(left)) {
		if !p.claimLeft(n) {
			continue
		}
		e := p.destroy(&Slot{pool: p, n: n, id: left[n]})
		p.mu.Lock()
		p.states[n] = free
		p.mu.Unlock()
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		removed = append(removed, left[n])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill()
	return removed, err
}

// claimLeft takes a slot for its destruction if nobody has it.
func (p *Pool) claimLeft(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.states[n] != found && p.states[n] != free {
		return false
	}
	p.states[n] = building
	return true
}

// Close destroys the slots that are ready and waits for those under way. Slots that are handed out, and those that a former agent has left,
// stay for the next agent of the owner, and so does the range. Without any, nothing is left.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	for _, c := range p.waiting {
		c <- outcome{err: ErrClosed}
	}
	p.waiting = nil
	p.mu.Unlock()
	p.wg.Wait()
	var errs []error
	for _, s := range p.warm {
		errs = append(errs, p.destroy(s))
	}
	if p.count(held)+p.count(found) == 0 {
		errs = append(errs, p.leaveHost())
	}
	p.closeFiles()
	return errors.Join(errs...)
}

// leaveHost gives the range back.
func (p *Pool) leaveHost() error {
	lock, err := lockFile(filepath.Join(p.conf.Dir, directoryLock), true)
	if err != nil {
		return err
	}
	defer lock.Close()
	return errors.Join(removeHostTable(p.rng.n), os.Remove(p.rng.path), leave(p.conf.Dir))
}
