package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Timing are the service's times; zero values mean the defaults.
type Timing struct {
	// Lease of a worker on its rows; renewed three times as often. Default 15 s.
	Lease time.Duration `yaml:"lease"`
	// Work is the longest that one piece of work may take. Default 5 min.
	Work time.Duration `yaml:"work"`
	// Reconcile is how often hosts are compared with the database. Default 5 s.
	Reconcile time.Duration `yaml:"reconcile"`
	// UnknownGrace is how long a VM that no row accounts for is left alone. Default 30 s.
	UnknownGrace time.Duration `yaml:"unknown_grace"`
	// HostLost is how long a host may be gone before its sandboxes count as lost with it. Default 5 min.
	HostLost time.Duration `yaml:"host_lost"`
	// DeleteWait is how long a deletion waits for a pause under way. Default 60 s.
	DeleteWait time.Duration `yaml:"delete_wait"`
	// Unreachable is how long a pause, or a start that no other host takes, is tried again while its host is out of reach. Default 30 s.
	Unreachable time.Duration `yaml:"unreachable"`
	// ExpireGrace is how long after the end of a sandbox's lifetime its host is left to end it. Default 10 s.
	ExpireGrace time.Duration `yaml:"expire_grace"`
	// Durable is how long a drain waits for the saved state of a sandbox to reach the registry. Default 2 min.
	Durable time.Duration `yaml:"durable"`
	// Reply is how long before a caller's end he is told that the waiting was for nothing, so that he hears why. Default 1 s.
	Reply time.Duration `yaml:"reply"`
	// Placing is how long after a cordon a sandbox may come to be on the host still: it was placed before, or by a scheduler that had not heard of the cordon
	// yet, and its row says so only now. Default 1 s.
	Placing time.Duration `yaml:"placing"`
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&t.Lease, 15 * time.Second}, {&t.Work, 5 * time.Minute}, {&t.Reconcile, 5 * time.Second},
		{&t.UnknownGrace, 30 * time.Second}, {&t.HostLost, 5 * time.Minute}, {&t.DeleteWait, time.Minute},
		{&t.Unreachable, 30 * time.Second}, {&t.ExpireGrace, 10 * time.Second}, {&t.Durable, 2 * time.Minute},
		{&t.Reply, time.Second}, {&t.Placing, time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	return t
}

// Config is what the service is made of.
type Config struct {
	Store     Store
	Hosts     Hosts
	Scheduler Scheduler
	Snapshots Snapshots
	Images    []Image
	Log       *slog.Logger
	// Owner names this replica in leases; the same as the store's.
	Owner  string
	Timing Timing
	// Quota is what a tenant may have at once unless it has limits of its own.
	Quota Amounts
	// Tenant gives a context to the tenant whose work is taken up, for whoever is called; may be nil.
	Tenant func(ctx context.Context, tenant string) context.Context
}

// Service is the control plane. Run must be running for leases to be renewed and for hosts to be watched.
type Service struct {
	store     Store
	hosts     Hosts
	scheduler Scheduler
	snapshots Snapshots
	images    []Image
	log       *slog.Logger
	owner     string
	timing    Timing
	quota     Amounts
	tenant    func(context.Context, string) context.Context

	// chores wakes the one who does them; capacity 1, never closed.
	chores chan struct{}

	mu     sync.Mutex // guards jobs and closed
	jobs   map[string]*job
	closed bool
	wg     sync.WaitGroup // the jobs
}

// New makes the service; it does nothing by itself before Run.
func New(c Config) *Service {
	if c.Tenant == nil {
		c.Tenant = func(ctx context.Context, _ string) context.Context { return ctx }
	}
	return &Service{
		store: c.Store, hosts: c.Hosts, scheduler: c.Scheduler, snapshots: c.Snapshots, images: c.Images,
		log: c.Log, owner: c.Owner, timing: c.Timing.withDefaults(), quota: c.Quota, tenant: c.Tenant,
		chores: make(chan struct{}, 1), jobs: map[string]*job{},
	}
}

// Run renews leases, reconciles and does chores until ctx ends. Then it ends its jobs, whose rows are left for another replica
// to continue, and returns once nothing of it runs any more.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	// Leases are renewed until the last job has ended.
	renewing, stopRenewing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRenewing()
	wg.Go(func() { s.renewLeases(renewing) })
	var loops sync.WaitGroup
	loops.Go(func() { s.doChores(ctx) })
	loops.Go(func() { s.noteDurables(ctx) })
	loops.Go(func() { newReconciler(s).run(ctx) })
	<-ctx.Done()
	loops.Wait()
	s.close()
	stopRenewing()
	wg.Wait()
	return nil
}

// close refuses new jobs, ends those that run, and waits for them.
func (s *Service) close() {
	s.mu.Lock()
	s.closed = true
	for _, j := range s.jobs {
		j.cancel(errShutdown)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Causes for which a job ends without having settled its rows.
var (
	errShutdown = errors.New("sandboxd is shutting down")
	errLost     = errors.New("another took the work over")
)

// job is work being done by this replica.
type job struct {
	workID string
	// ids are the rows that it holds leases on; none for a request's lease.
	ids    []string
	cancel context.CancelCauseFunc
	// done is closed by the job once outcome is set.
	done    chan struct{}
	outcome Outcome
}

// launch does work in a goroutine that no caller's end stops: it keeps the caller's values, for traces, and has a
// deadline of its own.
func (s *Service) launch(ctx context.Context, workID string, ids []string, do func(context.Context) Outcome) *job {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	j := &job{workID: workID, ids: ids, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		cancel(errShutdown)
		j.outcome = Outcome{Err: shuttingDown()}
		close(j.done)
		return j
	}
	if old := s.jobs[workID]; old != nil {
		old.cancel(errLost) // It lost its lease, or the work would not be begun again.
	}
	s.jobs[workID] = j
	s.wg.Go(func() {
		defer cancel(nil)
		ctx, stop := context.WithTimeout(ctx, s.timing.Work)
		defer stop()
		j.outcome = do(ctx)
		s.mu.Lock()
		if s.jobs[workID] == j {
			delete(s.jobs, workID)
		}
		s.mu.Unlock()
		if errors.Is(context.Cause(ctx), errShutdown) {
			s.giveUp(ctx, workID)
		}
		close(j.done)
	})
	return j
}

// giveUp lets another replica take the work over at once.
func (s *Service) giveUp(ctx context.Context, workID string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.store.Release(ctx, workID); err != nil {
		s.log.Warn("leases stay until they end by themselves", "work_id", workID, "error", err)
	}
}

func shuttingDown() *Error {
	return &Error{Kind: Unavailable, Reason: "SHUTTING_DOWN", Message: "this sandboxd is shutting down; the work goes on elsewhere; ask again"}
}

// gone tells whether the job must leave its rows as they are, and what to tell who waits for it.
func (s *Service) gone(ctx context.Context) *Error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errShutdown):
		return shuttingDown()
	case errors.Is(cause, errLost):
		return asError(ErrConflict)
	}
	return nil
}

// job finds running work of this replica.
func (s *Service) job(workID string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[workID]
}

// evict ends a local job whose rows were taken from it.
func (s *Service) evict(workID string) {
	if j := s.job(workID); j != nil {
		j.cancel(errLost)
	}
}

// evictFrom ends the local job of a row that was taken over. A fork's is left to find out by itself: it has other rows to end.
func (s *Service) evictFrom(sb Sandbox) {
	if sb.State.Working() && sb.Work.Op != OpFork {
		s.evict(sb.Work.ID)
	}
}

// wait waits for a job. The caller's end ends the waiting alone.
func (j *job) wait(ctx context.Context) (Outcome, error) {
	select {
	case <-j.done:
		return j.outcome, j.outcome.failure()
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
}

// failure is Err as an error, nil where there is none.
func (o Outcome) failure() error {
	if o.Err != nil {
		return o.Err
	}
	return nil
}

// cleanup is a context for what must be done although ctx ended: bounded, with ctx's values.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
}

// renewLeases prolongs the leases of all jobs and ends those that have lost theirs.
func (s *Service) renewLeases(ctx context.Context) {
	tick := time.NewTicker(s.timing.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.renew(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("leases could not be renewed", "error", err)
			}
		}
	}
}

func (s *Service) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timing.Lease/3)
	defer cancel()
	var ids, works []string
	held := map[string][]string{}
	s.mu.Lock()
	for w, j := range s.jobs {
		if len(j.ids) == 0 {
			works = append(works, w)
		}
		ids = append(ids, j.ids...)
		held[w] = j.ids
	}
	s.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	kept, err := s.store.Renew(ctx, ids)
	if err != nil {
		return err
	}
	keptWorks, err := s.store.RenewRequests(ctx, works)
	if err != nil {
		return err
	}
	still := map[string]bool{}
	for _, id := range append(kept, keptWorks...) {
		still[id] = true
	}
	for w, ids := range held {
		lost := len(ids) > 0
		for _, id := range ids {
			// Of a fork, a user may have deleted a copy; the work is lost only with all of its rows.
			lost = lost && !still[id]
		}
		if lost {
			s.evict(w)
		}
	}
	return nil
}
