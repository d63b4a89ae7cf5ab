package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/services/chassis/pgtest"
	"github.com/coveyhq/covey/services/sandbox"
	"github.com/coveyhq/covey/services/sandbox/postgres"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func open(t *testing.T, dsn, owner string, lease time.Duration) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{DSN: dsn}, owner, lease, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func migrated(t *testing.T) string {
	t.Helper()
	dsn := pgtest.Database(t)
	if err := postgres.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	return dsn
}

func insert(t *testing.T, s *postgres.Store, sb sandbox.Sandbox) sandbox.Sandbox {
	t.Helper()
	sb.Tenant = "acme"
	rows, err := s.Apply(t.Context(), sandbox.Change{Insert: []sandbox.Sandbox{sb}})
	if err != nil {
		t.Fatal(err)
	}
	return rows[0]
}

func TestACallWhoseProcessDiedStaysInTheAuditLogWithoutAnEnd(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	id, err := s.BeginAudit(t.Context(), sandbox.AuditEvent{Tenant: "acme", KeyID: "key_1", Method: "DeleteSandbox", Target: "sb_1"})
	if err != nil {
		t.Fatal(err)
	}
	log := func() sandbox.AuditEvent {
		t.Helper()
		list, err := s.Audit(t.Context(), sandbox.AuditFilter{Tenant: "acme"}, 10)
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0]
	}
	if e := log(); e.Code != "" || e.Target != "sb_1" || e.KeyID != "key_1" {
		t.Errorf("begun: %+v", e)
	}
	if err := s.EndAudit(t.Context(), id, "", "OK", ""); err != nil {
		t.Fatal(err)
	}
	if e := log(); e.Code != "OK" || e.Target != "sb_1" {
		t.Errorf("ended: %+v", e)
	}
}

func TestReplicasThatStartAtOnceMigrateOnce(t *testing.T) {
	dsn := pgtest.Database(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := postgres.Migrate(t.Context(), dsn); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOfConcurrentChangesOfOneVersionExactlyOneWins(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	sb := insert(t, s, sandbox.Sandbox{ID: "sb_1", State: sandbox.Running})
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 16 {
		wg.Go(func() {
			mine := sb
			mine.Reason = fmt.Sprint(i)
			_, err := s.Apply(t.Context(), sandbox.Change{Update: []sandbox.Sandbox{mine}})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case !errors.Is(err, sandbox.ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if now, err := s.Get(t.Context(), "acme", sb.ID); err != nil || won != 1 || now.Version != 2 {
		t.Fatalf("%d won, version %d, %v", won, now.Version, err)
	}
}

func TestAChangeHappensWholeOrNotAtAll(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	sb := insert(t, s, sandbox.Sandbox{ID: "sb_1", State: sandbox.Running})
	stale := sb
	stale.Version++
	_, err := s.Apply(t.Context(), sandbox.Change{
		Begin:  &sandbox.Request{Tenant: "acme", ID: "r", Method: "m", Hash: []byte{1}, WorkID: "w", SandboxIDs: []string{"sb_2"}},
		Insert: []sandbox.Sandbox{{ID: "sb_2", Tenant: "acme", State: sandbox.Pending}}, Update: []sandbox.Sandbox{stale},
		Chores: []sandbox.Chore{{Kind: sandbox.DestroyVM}},
	})
	if !errors.Is(err, sandbox.ErrConflict) {
		t.Fatal(err)
	}
	_, errSandbox := s.Get(t.Context(), "acme", "sb_2")
	_, errRequest := s.Request(t.Context(), "acme", "r")
	chores, errChores := s.Chores(t.Context(), 10)
	if !errors.Is(errSandbox, sandbox.NotFound) || !errors.Is(errRequest, sandbox.NotFound) || errChores != nil || len(chores) != 0 {
		t.Fatalf("left: %v, %v, %v, %v", errSandbox, errRequest, chores, errChores)
	}
	_, err = s.Apply(t.Context(), sandbox.Change{Require: []sandbox.Sandbox{stale}})
	if !errors.Is(err, sandbox.ErrConflict) {
		t.Fatalf("a stale requirement: %v", err)
	}
}

func TestARowIsReadBackAsItWasWritten(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	want := sandbox.Sandbox{
		ID: "sb_1", State: sandbox.Pending, Metadata: map[string]string{"k": "v"}, HostID: "h", SourceSnapshotID: "snap_s", LeaseOwner: "o",
		Spec: sandbox.Spec{
			Template: "t", SnapshotID: "snap_s", Kind: sandbox.Spawn, ParentID: "sb_0", VCPUs: 2, MemoryMB: 3, DiskMB: 4, TimeoutSec: 5, MaxLifetimeSec: 60,
			Env: sandbox.Env{"A": "1"}, Network: sandbox.Network{Disabled: true, AllowCIDRs: []string{"10.0.0.0/8"}}, AutoResume: true,
			RestorePolicy: sandbox.DiskOnly, HostLabels: map[string]string{"z": "1"}, Needs: sandbox.Needs{VMM: "qemu", Machine: "microvm-7.2", CPUFeatures: []string{"avx"}, KernelID: "k"},
		},
		Work: sandbox.Work{ID: "w", Op: sandbox.OpCreate, RequestID: "r", Refused: []string{"a"}, Placed: true},
	}
	got := insert(t, s, want)
	if got.ExpireTime.Sub(got.CreateTime) != time.Minute {
		t.Fatalf("expires %s after %s", got.ExpireTime, got.CreateTime)
	}
	want.Tenant, want.Version = "acme", 1
	want.CreateTime, want.StateTime, want.LastActiveTime, want.ExpireTime = got.CreateTime, got.StateTime, got.LastActiveTime, got.ExpireTime
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Fatalf("read\n%+v\nwrote\n%+v", got, want)
	}
}

// TestEventsAreNumberedWithoutGapsInTheOrderInWhichTheyShow follows a tenant's events while many writers commit: what was read
// up to a number is never added to afterwards.
func TestEventsAreNumberedWithoutGapsInTheOrderInWhichTheyShow(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	const writers, each = 8, 25
	wake, stop := s.Subscribe("acme", "")
	defer stop()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				_, err := s.Apply(context.Background(), sandbox.Change{Insert: []sandbox.Sandbox{{ID: fmt.Sprintf("sb_%d_%d", w, i), Tenant: "acme", State: sandbox.Running}}})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var last int64
	for end := time.After(2 * time.Minute); last < writers*each; {
		events, err := s.Events(t.Context(), "acme", "", last, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Seq != last+1 {
				t.Fatalf("event %d follows %d", e.Seq, last)
			}
			last = e.Seq
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-end:
			t.Fatalf("no wake-up after event %d", last)
		}
	}
	wg.Wait()
}

func TestWatchersAreWokenAgainAfterTheirConnectionBroke(t *testing.T) {
	dsn := migrated(t)
	s := open(t, dsn, "o", time.Minute)
	wake, stop := s.Subscribe("acme", "sb_1")
	defer stop()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"the broken connection", "a change after it"} {
		select {
		case <-wake:
		case <-time.After(time.Minute):
			t.Fatalf("no wake-up for %s", what)
		}
		if what == "the broken connection" {
			insert(t, s, sandbox.Sandbox{ID: "sb_1", State: sandbox.Running})
		}
	}
}

func TestStuckRowsGoToOneReplicaEach(t *testing.T) {
	dsn := migrated(t)
	dead := open(t, dsn, "dead", time.Millisecond)
	for i := range 20 {
		insert(t, dead, sandbox.Sandbox{ID: fmt.Sprintf("sb_%02d", i), State: sandbox.Starting, LeaseOwner: "dead", Work: sandbox.Work{ID: fmt.Sprint("w", i/2)}})
	}
	live := open(t, dsn, "live", time.Minute)
	held := insert(t, live, sandbox.Sandbox{ID: "sb_held", State: sandbox.Starting, LeaseOwner: "live", Work: sandbox.Work{ID: "held"}})
	got := make([][]sandbox.Sandbox, 4)
	var wg sync.WaitGroup
	for i := range got {
		s := open(t, dsn, fmt.Sprint("replica", i), time.Minute)
		wg.Go(func() {
			var err error
			if got[i], err = s.ClaimStuck(t.Context(), 4); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for i, rows := range got {
		for _, sb := range rows {
			seen[sb.Work.ID]++
			if sb.Version != 2 || sb.LeaseOwner != fmt.Sprint("replica", i) || sb.ID == held.ID {
				t.Errorf("replica %d got %+v", i, sb)
			}
		}
	}
	for w, n := range seen {
		if n > 1 {
			t.Errorf("work %s went to %d replicas", w, n)
		}
	}
	if len(seen) == 0 {
		t.Error("nobody got anything")
	}
}

func TestAChoreIsHandedOutOnceUntilItIsDueAgain(t *testing.T) {
	s := open(t, migrated(t), "o", time.Minute)
	if _, err := s.Apply(t.Context(), sandbox.Change{Chores: []sandbox.Chore{{Kind: sandbox.DropSnapshot, SnapshotID: "snap_1", HostID: "h"}}}); err != nil {
		t.Fatal(err)
	}
	chores, err := s.Chores(t.Context(), 10)
	if err != nil || len(chores) != 1 || chores[0].SnapshotID != "snap_1" || chores[0].Attempts != 1 {
		t.Fatalf("%+v, %v", chores, err)
	}
	if again, err := s.Chores(t.Context(), 10); err != nil || len(again) != 0 {
		t.Fatalf("handed out twice: %+v, %v", again, err)
	}
	if err := s.ChoreDone(t.Context(), chores[0].ID); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsKeptForEver(t *testing.T) {
	dsn := migrated(t)
	s := open(t, dsn, "o", time.Minute)
	sb := insert(t, s, sandbox.Sandbox{ID: "sb_1", State: sandbox.Running, Spec: sandbox.Spec{VCPUs: 1, Env: sandbox.Env{"TOKEN": "secret"}}})
	sb.State = sandbox.Stopped
	unanswered := &sandbox.Request{Tenant: "acme", ID: "unanswered", Method: "snapshot", Hash: []byte{1}, WorkID: "w", SandboxIDs: []string{"sb_1"}, LeaseOwner: "dead"}
	c := sandbox.Change{Begin: unanswered, Update: []sandbox.Sandbox{sb}, Receipts: map[string][]byte{"sb_1": []byte("receipt")}}
	if _, err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginAudit(t.Context(), sandbox.AuditEvent{Tenant: "acme", Method: "DeleteSandbox"}); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var spec string
	if err := conn.QueryRow(t.Context(), "SELECT spec::text FROM sandbox.sandbox").Scan(&spec); err != nil || strings.Contains(spec, "secret") {
		t.Errorf("of a sandbox that is gone the row still has %s (%v)", spec, err)
	}
	columns := map[string]string{
		"sandbox": "state_time", "event": "at", "request": "create_time", "usage": "end_time", "audit": "time", "receipt": "",
	}
	for table, column := range columns {
		if column == "" {
			continue
		}
		for range 2 { // The times of usage hang together.
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("UPDATE sandbox.%s SET %s = now() - interval '401 days'", table, column)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	for table := range columns {
		var n int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM sandbox."+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows are left in %s (%v)", n, table, err)
		}
	}
}

func TestNotingUseWaitsForNobody(t *testing.T) {
	dsn := migrated(t)
	s := open(t, dsn, "o", time.Minute)
	insert(t, s, sandbox.Sandbox{ID: "sb_1", State: sandbox.Running})
	insert(t, s, sandbox.Sandbox{ID: "sb_2", State: sandbox.Running})
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "SELECT 1 FROM sandbox.sandbox WHERE id = 'sb_1' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	if err := s.Touch(ctx, map[string]time.Time{"sb_1": at, "sb_2": at}); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Find(t.Context(), []string{"sb_2"})
	if err != nil || !rows["sb_2"].LastActiveTime.Equal(at) {
		t.Errorf("%v, %v; used at %s", rows, err, at)
	}
}

// query is the text of a query as sqlc reads it, with its parameters replaced.
func query(t *testing.T, file, name string, params ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("queries", file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "-- name: "+name+" ")
	if !found {
		t.Fatalf("%s has no query %s", file, name)
	}
	_, body, _ := strings.Cut(rest, "\n")
	body, _, _ = strings.Cut(body, "-- name:")
	return strings.NewReplacer(params...).Replace(body)
}

func TestWhoMustBeKeptApartIsFoundByAnIndexAmongTenThousandSandboxes(t *testing.T) {
	dsn := migrated(t)
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	// One in a hundred has an anti-affinity; all are of one tenant and hold room.
	for _, sql := range []string{
		`ALTER TABLE sandbox.sandbox DISABLE TRIGGER USER`,
		`INSERT INTO sandbox.sandbox (id, tenant_id, state, host_id, spec)
		 SELECT 'sb_' || n, 'acme', 'RUNNING', 'host-' || n % 50,
		        CASE WHEN n % 100 = 0 THEN jsonb_build_object('AntiAffinity', 'group-' || n % 1000) ELSE '{}'::jsonb END
		 FROM generate_series(1, 10000) n`,
		`ANALYZE sandbox.sandbox`,
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	asked := query(t, "sandbox.sql", "ListApart", "@tenant_id", "$1", "sqlc.arg('anti_affinity')::text", "$2::text")
	// As a prepared statement that does not know its parameters when it is planned, which is the harder case.
	if _, err := db.Exec(t.Context(), "SET plan_cache_mode = force_generic_plan"); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(t.Context(), "EXPLAIN "+asked, "acme", "group-100")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "sandbox_apart") {
		t.Errorf("it is planned without the index:\n%s", text)
	}
	found, err := open(t, dsn, "one", time.Minute).Apart(t.Context(), "acme", "group-100")
	if err != nil || len(found) != 10 {
		t.Errorf("found %d, %v", len(found), err)
	}
}
