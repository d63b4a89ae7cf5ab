package registry

import (
	"context"
	"io"
	"time"
)

// Registration is a snapshot to be recorded.
type Registration struct {
	Tenant   string
	Kind     SnapshotKind
	Name     string
	Manifest Manifest
	HostID   string
	Metadata map[string]string
}

// Page is a position in a list that is ordered newest first; the zero one is its beginning.
type Page struct {
	BeforeTime time.Time
	BeforeID   string
}

// StoredObject is what the index knows of an object.
type StoredObject struct {
	Object
	// Path is where its bytes are or will be.
	Path string
	// Stored tells that they are there, whole and checked.
	Stored bool
}

// Index keeps what the registry knows, in a database. Every method is one transaction. A ref is a snapshot's id or its
// name; with the empty tenant, which means any, only an id. Snapshots that are Deleting are not found, except where said.
type Index interface {
	// Register records a snapshot, its references and the objects not known yet. One that is there with the same manifest is
	// returned as it is; with another one it is Exists, as is a taken name. Objects that are known with another checksum are
	// Exists too, and an id that was deleted or dropped is NotFound. With admit, it is asked about the tenant's usage, the new
	// snapshot included.
	Register(ctx context.Context, r Registration, admit func(Usage) error) (Snapshot, error)
	Find(ctx context.Context, tenant, ref string) (Snapshot, error)
	// List reads the tenant's snapshots of a kind, or of all kinds where it is empty.
	List(ctx context.Context, tenant string, kind SnapshotKind, from Page, limit int) ([]Snapshot, error)
	// Rename is Exists where the name is taken.
	Rename(ctx context.Context, tenant, ref, name string) (Snapshot, error)
	// Delete removes a snapshot if may, which is shown its live leases, does not object. It is Deleting as long as leases
	// are left, else gone.
	Delete(ctx context.Context, tenant, ref string, may func(Snapshot, []Lease) error) (Snapshot, error)
	// Drop removes a snapshot whatever needs it, or sees to it that it is never registered. It is Deleting as long as leases are left.
	Drop(ctx context.Context, tenant, id string) error
	// MakeDurable makes a snapshot Durable if all that it names is stored, else it returns the keys of what is not.
	MakeDurable(ctx context.Context, tenant, id string) (s Snapshot, missing []string, err error)

	// Hosts lists the hosts that have a snapshot.
	Hosts(ctx context.Context, id string) ([]string, error)
	// Readers lists the hosts that have a snapshot or hold a lease on it, as those do that fetch it.
	Readers(ctx context.Context, id string) ([]string, error)
	// SetHostSnapshots records what a host has, and returns which of it there is.
	SetHostSnapshots(ctx context.Context, hostID string, ids []string) ([]string, error)
	Builds(ctx context.Context, tenant, id string, limit int) ([]BuildUse, error)
	Lineage(ctx context.Context, tenant, id string) ([]string, error)
	Usage(ctx context.Context, tenant string) (Usage, error)

	// Leases lists the live leases of a snapshot, oldest first.
	Leases(ctx context.Context, id string) ([]Lease, error)
	// Acquire makes or renews a lease; ttl 0 means for ever. One of a snapshot that is Deleting can only be renewed.
	Acquire(ctx context.Context, tenant, id, holder string, ttl time.Duration) error
	// Release ends a lease, or with an empty id all of the holder's. The snapshot may be Deleting.
	Release(ctx context.Context, tenant, id, holder string) error

	// Object finds an object by key that a snapshot of the tenant names, even one that is Deleting.
	Object(ctx context.Context, tenant, key string) (StoredObject, error)
	// Objects lists what a snapshot names.
	Objects(ctx context.Context, tenant, id string) ([]StoredObject, error)
	// SetStored notes whether an object's bytes are there; false where no object has this path any more.
	SetStored(ctx context.Context, path string, stored bool) (bool, error)

	// Expire removes leases that have ended, and snapshots that are Deleting and have none left.
	Expire(ctx context.Context) (snapshots int, err error)
	// Bury forgets objects that nothing names; their paths become garbage. It returns how many were looked at.
	Bury(ctx context.Context, limit int) (looked, buried int, err error)
	// Garbage lists paths whose bytes are to be deleted, the longest waiting first.
	Garbage(ctx context.Context, limit int) ([]string, error)
	// Postpone puts a path at the end of the garbage.
	Postpone(ctx context.Context, path string) error
	// Discard makes a path garbage, unless an object has it.
	Discard(ctx context.Context, path string) error
	// Forget takes a path off the garbage.
	Forget(ctx context.Context, path string) error
	// Unknown tells which of the paths neither an object has nor the garbage.
	Unknown(ctx context.Context, paths []string) ([]string, error)
}

// Store keeps bytes at paths: immutable once whole, each path used for one content only. It is safe for concurrent use.
//
// A scenario: Begin opens an upload; where an earlier one of the path was broken off, its Offset is where that one had come. Write
// appends. When all bytes are there Finish checks them and makes them appear at the path, at once and durably. Close is always
// called; before Finish it keeps what is there for the next Begin. From Finish on, Stat and Read find the path, until Delete.
type Store interface {
	// Begin opens an upload of size bytes that have a SHA-256. Where the path is already whole, the upload's Offset is size
	// and Finish does nothing.
	Begin(ctx context.Context, path string, size int64, sum [32]byte) (StoreUpload, error)
	// Stat tells the size of what is at a path; ErrAbsent.
	Stat(ctx context.Context, path string) (int64, error)
	// Read opens a range, which lies within the object; ErrAbsent.
	Read(ctx context.Context, path string, off, length int64) (io.ReadCloser, error)
	// Delete removes what is at a path, whole or part. Nothing there is no error.
	Delete(ctx context.Context, path string) error
	// Walk calls fn with every path that has bytes, whole or part; one path may come twice.
	Walk(ctx context.Context, fn func(path string) error) error
}

// StoreUpload is one try to bring bytes into a Store. It belongs to one goroutine.
type StoreUpload interface {
	// Offset is how many bytes there are.
	Offset() int64
	// Write appends p, which does not go beyond the size.
	Write(ctx context.Context, p []byte) error
	// Finish is called once Offset is the size. ErrDamaged where the checksum is wrong.
	Finish(ctx context.Context) error
	Close() error
}
