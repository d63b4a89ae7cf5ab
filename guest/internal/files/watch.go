package files

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// EventType is what happened to a file.
type EventType int

// The types of events.
const (
	Created EventType = iota + 1
	Written
	Removed
	Renamed
	Attributes
	// Overflow: events were lost.
	Overflow
)

// Event is one change.
type Event struct {
	Type EventType
	Path string
}

// Watch calls ready once the watch is in place and then event for each change of p, or in it, until ctx ends or event fails. With
// recursive it watches the directories below too, those that come later included.
func (a *Actor) Watch(ctx context.Context, p string, recursive bool, ready func() error, event func(Event) error) error {
	p, err := a.Resolve("path", p)
	if err != nil {
		return err
	}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer n.Close()
	w := &watch{actor: a, notify: n, recursive: recursive, event: event}
	if err := a.do(func() error { return w.add(p, false) }); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, ok := <-n.Events:
			if !ok {
				return errors.New("the watch ended")
			}
			if err := w.pass(e); err != nil {
				return err
			}
		case err, ok := <-n.Errors:
			if !ok || !errors.Is(err, fsnotify.ErrEventOverflow) {
				return errors.Join(errors.New("the watch ended"), err)
			}
			if err := event(Event{Overflow, p}); err != nil {
				return err
			}
		}
	}
}

type watch struct {
	actor     *Actor
	notify    *fsnotify.Watcher
	recursive bool
	event     func(Event) error
	found     []string // what add found that was there before its watch
}

// add watches a path and, of a recursive watch, the directories below it. With report it remembers what is already there:
// it was made before anybody could tell. It runs with the actor's permissions.
func (w *watch) add(p string, report bool) error {
	if err := w.notify.Add(p); err != nil {
		return err
	}
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(p)
	if err != nil {
		return nil // not a directory, or gone
	}
	for _, e := range entries {
		below := filepath.Join(p, e.Name())
		if report {
			w.found = append(w.found, below)
		}
		if e.IsDir() {
			// A directory that may not be read is left out; one that is gone needs no watch.
			if err := w.add(below, report); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// pass hands one event on; several things may have happened in it.
func (w *watch) pass(e fsnotify.Event) error {
	if isTemp(e.Name) {
		return nil
	}
	for _, m := range []struct {
		op   fsnotify.Op
		kind EventType
	}{{fsnotify.Create, Created}, {fsnotify.Write, Written}, {fsnotify.Remove, Removed}, {fsnotify.Rename, Renamed}, {fsnotify.Chmod, Attributes}} {
		if !e.Op.Has(m.op) {
			continue
		}
		if err := w.event(Event{m.kind, e.Name}); err != nil {
			return err
		}
	}
	if !w.recursive || !e.Op.Has(fsnotify.Create) {
		return nil
	}
	return w.addNew(e.Name)
}

func (w *watch) addNew(p string) error {
	w.found = nil
	err := w.actor.do(func() error {
		if info, err := os.Lstat(p); err != nil || !info.IsDir() {
			return nil
		}
		return w.add(p, true)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	for _, f := range w.found {
		if isTemp(f) {
			continue
		}
		if err := w.event(Event{Created, f}); err != nil {
			return err
		}
	}
	return nil
}
