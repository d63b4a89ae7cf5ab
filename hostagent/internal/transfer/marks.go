package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
)

// mark says why nothing is to be uploaded of a snapshot.
type mark string

const (
	// durable: made here, and in the registry.
	durable mark = "durable"
	// fetched: it came from elsewhere.
	fetched mark = "fetched"
)

// marks are the marks of a host's snapshots, a file each. They are not synced: one that a crash of the machine loses is made again, as
// the registry knows better.
type marks struct {
	dir string

	mu  sync.Mutex // guards all
	all map[string]mark
}

func openMarks(dir string) (*marks, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	m := &marks{dir: dir, all: map[string]mark{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("transfer: %w", err)
		}
		if k := mark(b); k == durable || k == fetched {
			m.all[f.Name()] = k
		}
	}
	return m, nil
}

func (m *marks) get(id string) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[id]
}

// list is a copy.
func (m *marks) list() map[string]mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.all)
}

func (m *marks) set(id string, k mark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[id] == k {
		return nil
	}
	m.all[id] = k
	return os.WriteFile(filepath.Join(m.dir, id), []byte(k), 0o600)
}

func (m *marks) clear(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, id)
	if err := os.Remove(filepath.Join(m.dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
