// Package journal keeps one small durable record for each sandbox of a host, so that an agent that was killed finds again
// what the former one had.
//
// A record is a JSON file, journal/<id>.json, in an envelope that tells the format's version and the kernel's boot in which it
// was written: process ids and the like mean nothing in another boot. It is replaced atomically: written beside, synced, renamed,
// and the directory synced. So a record is the old one or the new one, never half of one, even if the machine loses power.
//
// Chosen: a file for each sandbox, because writers of different sandboxes then never wait for each other and a damaged record
// costs one sandbox. Rejected: one log for all (needs compaction, and a lock on the critical path of every start), and an
// embedded database (a dependency for a directory of files).
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// version of the envelope.
const version = 1

// maxRecord bounds what is read of one file, bytes.
const maxRecord = 4 << 20

const suffix = ".json"

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

type envelope[T any] struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	BootID  string `json:"boot_id"`
	Record  *T     `json:"record"`
}

// Journal keeps records of one type in a directory. It is safe for concurrent use; writers of the same id wait for each other.
type Journal[T any] struct {
	dir    string
	bootID string
	// mu guards locks; each lock orders the writers of one id.
	mu    sync.Mutex
	locks map[string]*lock
}

type lock struct {
	sync.Mutex
	users int
}

// Entry is one record as it was found.
type Entry[T any] struct {
	ID     string
	Record T
	// SameBoot tells that the kernel has not been restarted since it was written.
	SameBoot bool
	// Err says why the record cannot be read; Record is then zero.
	Err error
}

// Open opens a journal in a directory, which it makes if need be, and removes what interrupted writes have left there.
func Open[T any](dir string) (*Journal[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &Journal[T]{dir: dir, bootID: strings.TrimSpace(string(boot)), locks: map[string]*lock{}}
	stale, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	return j, nil
}

// Put replaces the record of an id. It is durable once Put returns.
func (j *Journal[T]) Put(id string, record T) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("journal: %q cannot name a record", id)
	}
	data, err := json.Marshal(envelope[T]{Version: version, ID: id, BootID: j.bootID, Record: &record})
	if err != nil {
		return fmt.Errorf("journal: record %s: %w", id, err)
	}
	if len(data) > maxRecord {
		return fmt.Errorf("journal: record %s has %d bytes; at most %d are legal", id, len(data), maxRecord)
	}
	defer j.lock(id)()
	if err := j.replace(id, data); err != nil {
		return fmt.Errorf("journal: record %s: %w", id, err)
	}
	return nil
}

// Remove removes the record of an id; one that is not there is no error.
func (j *Journal[T]) Remove(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("journal: %q cannot name a record", id)
	}
	defer j.lock(id)()
	err := os.Remove(j.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return fmt.Errorf("journal: record %s: %w", id, err)
	}
	return nil
}

// Load reads all records, by id. One that cannot be read is an Entry with Err set: it never hides the others.
func (j *Journal[T]) Load() ([]Entry[T], error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var list []Entry[T]
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || !f.Type().IsRegular() {
			continue
		}
		e := Entry[T]{ID: id}
		e.Record, e.SameBoot, e.Err = j.read(id)
		list = append(list, e)
	}
	return list, nil
}

func (j *Journal[T]) read(id string) (record T, sameBoot bool, err error) {
	path := j.path(id)
	st, err := os.Stat(path)
	if err != nil {
		return record, false, err
	}
	if st.Size() > maxRecord {
		return record, false, fmt.Errorf("%s has %d bytes; at most %d are legal", path, st.Size(), maxRecord)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return record, false, err
	}
	return decode[T](id, j.bootID, data)
}

func decode[T any](id, bootID string, data []byte) (record T, sameBoot bool, err error) {
	var env envelope[T]
	if err := json.Unmarshal(data, &env); err != nil {
		return record, false, fmt.Errorf("record %s is damaged: %w", id, err)
	}
	switch {
	case env.Version != version:
		return record, false, fmt.Errorf("record %s has version %d; this agent reads %d", id, env.Version, version)
	case env.ID != id:
		return record, false, fmt.Errorf("record %s says that it is of %q", id, env.ID)
	case env.Record == nil:
		return record, false, fmt.Errorf("record %s is empty", id)
	}
	return *env.Record, env.BootID == bootID, nil
}

func (j *Journal[T]) path(id string) string { return filepath.Join(j.dir, id+suffix) }

func (j *Journal[T]) replace(id string, data []byte) (err error) {
	tmp := filepath.Join(j.dir, id+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, j.path(id))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(j.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock orders the writers of one id and returns the unlocking.
func (j *Journal[T]) lock(id string) func() {
	j.mu.Lock()
	l := j.locks[id]
	if l == nil {
		l = &lock{}
		j.locks[id] = l
	}
	l.users++
	j.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		j.mu.Lock()
		defer j.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(j.locks, id)
		}
	}
}
