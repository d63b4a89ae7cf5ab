package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// database is the mesh's private PostgreSQL: reached over a Unix socket in a directory that only root and its own user
// may enter, so that it needs no password and no port; and from a backbone, which nobody else is on, where there is one.
type database struct {
	bin, dir string
	uid, gid int
	// addr is its address at the backbone; not valid where there is none.
	addr netip.Addr
}

// databasePort is that of a database at a backbone.
const databasePort = "5432"

// newDatabase finds the unprivileged user that PostgreSQL, which refuses root, runs as.
func newDatabase(bin, dir string) (*database, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("no user \"postgres\": the package postgresql-15 makes it: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, err
	}
	return &database{bin: bin, dir: dir, uid: uid, gid: gid}, nil
}

// init makes the database cluster unless it is there.
func (d *database) init(ctx context.Context, tell func(string)) error {
	if _, err := os.Stat(filepath.Join(d.data(), "PG_VERSION")); err == nil {
		return nil
	}
	if err := os.RemoveAll(d.data()); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(d.dir, d.uid, d.gid); err != nil {
		return err
	}
	err := runAs(ctx, tell, d.uid, d.gid, filepath.Join(d.bin, "initdb"), "-D", d.data(), "-U", "covey", "-A", "trust",
		"-E", "UTF8", "--locale=C.UTF-8", "--no-instructions")
	if err != nil || !d.addr.IsValid() {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.data(), "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "host all all %s trust\n", backboneNet)
	return errors.Join(err, f.Close())
}

func (d *database) data() string { return filepath.Join(d.dir, "data") }

// DSN is how daemons, which run as root, reach it.
func (d *database) DSN() string {
	if d.addr.IsValid() {
		return fmt.Sprintf("host=%s port=%s user=covey dbname=covey sslmode=disable", d.addr, databasePort)
	}
	return fmt.Sprintf("host=%s user=covey dbname=covey sslmode=disable", d.dir)
}

// Connect connects to the mesh's database.
func (m *Mesh) Connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(m.DSN)
	if err != nil {
		return nil, err
	}
	c.DialFunc = m.Dial
	return pgx.ConnectConfig(ctx, c)
}

func (d *database) process(log string) *Process {
	listen := ""
	if d.addr.IsValid() {
		listen = d.addr.String()
	}
	return &Process{
		Name: "postgres", Path: filepath.Join(d.bin, "postgres"), Log: log, UID: d.uid, GID: d.gid,
		Args: []string{"-D", d.data(), "-k", d.dir, "-c", "listen_addresses=" + listen, "-c", "port=" + databasePort, "-c", "unix_socket_permissions=0700",
			"-c", "max_connections=200", "-c", "shared_buffers=64MB"},
	}
}

// create waits for the server and makes Covey's database.
func (d *database) create(ctx context.Context) error {
	admin := fmt.Sprintf("host=%s user=covey dbname=postgres sslmode=disable", d.dir)
	return until(ctx, "PostgreSQL to answer", func(ctx context.Context) error {
		c, err := pgx.Connect(ctx, admin)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		var n int
		if err := c.QueryRow(ctx, "select count(*) from pg_database where datname = 'covey'").Scan(&n); err != nil || n > 0 {
			return err
		}
		_, err = c.Exec(ctx, "create database covey")
		return err
	})
}

func runAs(ctx context.Context, tell func(string), uid, gid int, name string, args ...string) error {
	cmd, out := command(ctx, tell, name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out.keep.String())
	}
	return nil
}
