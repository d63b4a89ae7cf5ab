package postgres

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// channel is where the trigger tells of changes: "<sandbox id> <tenant>".
const channel = "covey_sandbox"

// bell listens on one connection and wakes who has subscribed.
type bell struct {
	conf   *pgx.ConnConfig
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{} // closed by the listening goroutine at its end

	mu   sync.Mutex // guards subs
	subs map[string]map[chan struct{}]struct{}
}

// listen returns once it listens, so that no change after it goes unheard.
func listen(ctx context.Context, conf *pgx.ConnConfig, log *slog.Logger) (*bell, error) {
	b := &bell{conf: conf, log: log, done: make(chan struct{}), subs: map[string]map[chan struct{}]struct{}{}}
	c, err := b.connect(ctx)
	if err != nil {
		return nil, err
	}
	ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go b.run(ctx, c) // close waits for it.
	return b, nil
}

func (b *bell) close() {
	b.cancel()
	<-b.done
}

func (b *bell) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ConnectConfig(ctx, b.conf.Copy())
	if err != nil {
		return nil, err
	}
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		closeConn(c)
		return nil, err
	}
	return c, nil
}

// closeConn says good-bye to the server, but not for long.
func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.Close(ctx)
}

// run listens until ctx ends. After a broken connection it wakes everybody: they may have missed something.
func (b *bell) run(ctx context.Context, c *pgx.Conn) {
	defer close(b.done)
	for {
		err := b.hear(ctx, c)
		closeConn(c)
		for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
			if ctx.Err() != nil {
				return
			}
			b.log.Warn("database connection for notifications broke; opening it again", "error", err)
			if c, err = b.connect(ctx); err == nil {
				break
			}
			again := time.NewTimer(delay)
			select {
			case <-again.C:
			case <-ctx.Done():
				again.Stop()
			}
		}
		b.ringAll()
	}
}

func (b *bell) hear(ctx context.Context, c *pgx.Conn) error {
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		id, tenant, _ := strings.Cut(n.Payload, " ")
		b.ring(key(tenant, id), key(tenant, ""))
	}
}

func key(tenant, sandboxID string) string { return tenant + " " + sandboxID }

func (b *bell) ring(keys ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		for ch := range b.subs[k] {
			wake(ch)
		}
	}
}

func (b *bell) ringAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, subs := range b.subs {
		for ch := range subs {
			wake(ch)
		}
	}
}

// wake never blocks: the channel holds one wake-up, and more would say nothing more.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (b *bell) subscribe(tenant, sandboxID string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	k := key(tenant, sandboxID)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs[k] == nil {
		b.subs[k] = map[chan struct{}]struct{}{}
	}
	b.subs[k][ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs[k], ch)
		if len(b.subs[k]) == 0 {
			delete(b.subs, k)
		}
	}
}
