package migration_test

import (
	"os"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/coveyhq/covey/services/chassis/migration"
	"github.com/coveyhq/covey/services/chassis/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const lock = 0x7e57

func file(up string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("-- +goose Up\n" + up + ";\n")}
}

func TestReplicasThatStartAtOnceMigrateOnce(t *testing.T) {
	dsn := pgtest.Database(t)
	files := fstest.MapFS{"00001_first.sql": file("CREATE TABLE fleet.things (id int); INSERT INTO fleet.things VALUES (1)")}
	var replicas sync.WaitGroup
	for range 4 {
		replicas.Go(func() {
			if err := migration.Up(t.Context(), dsn, "fleet", lock, files); err != nil {
				t.Error(err)
			}
		})
	}
	replicas.Wait()
	// A later version adds to it.
	files["00002_second.sql"] = file("INSERT INTO fleet.things VALUES (2)")
	if err := migration.Up(t.Context(), dsn, "fleet", lock, files); err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	var sum, held int
	if err := db.QueryRow(t.Context(), "SELECT sum(id) FROM fleet.things").Scan(&sum); err != nil || sum != 3 {
		t.Errorf("the things sum up to %d (%v), want 3", sum, err)
	}
	if err := db.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").Scan(&held); err != nil || held != 0 {
		t.Errorf("%d locks are left (%v)", held, err)
	}
}

func TestAMigrationThatFailsLeavesTheLockAndTheSchemaAsTheyWere(t *testing.T) {
	dsn := pgtest.Database(t)
	files := fstest.MapFS{"00001_first.sql": file("CREATE TABLE fleet.things (id int); SELECT 1/0")}
	if err := migration.Up(t.Context(), dsn, "fleet", lock, files); err == nil {
		t.Fatal("it is done")
	}
	files["00001_first.sql"] = file("CREATE TABLE fleet.things (id int)")
	if err := migration.Up(t.Context(), dsn, "fleet", lock, files); err != nil {
		t.Error(err)
	}
	if err := migration.Up(t.Context(), "host=:::", "fleet", lock, files); err == nil {
		t.Error("a wrong dsn is taken")
	}
}
