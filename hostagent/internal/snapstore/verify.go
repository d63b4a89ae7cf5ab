package snapstore

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/coveyhq/covey/hostagent/internal/machine"
)

// Verify looks whether an object of the snapshot is whole here, and heals it if it is not. The error says that it is damaged here and stays so.
func (x *Export) Verify(ctx context.Context, o Object) error {
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	damage := x.check(ctx, o)
	if damage == nil {
		return nil
	}
	if path.Dir(o.Key) != "builds" {
		return x.store.healFile(ctx, x.entry, path.Base(o.Key), o, damage)
	}
	// Who opens it heals what is needed to read it.
	s, err := x.store.OpenSnapshot(ctx, x.Record.Manifest.ID)
	if err != nil {
		return errors.Join(damage, err)
	}
	defer s.Release()
	b := x.build(o.Key)
	if b == nil {
		return damage
	}
	body, err := b.opened()
	if err == nil {
		err = b.mendAll(ctx, body)
	}
	if err == nil && body.part == nil {
		err = x.check(ctx, o)
	}
	if err != nil {
		return errors.Join(damage, err)
	}
	return nil
}

// check reads an object whole. What is here in part alone is verified frame by frame when it is read.
func (x *Export) check(ctx context.Context, o Object) error {
	file, b, err := x.store.objectPath(o.Key)
	if err != nil {
		return err
	}
	got, err := hashFile(ctx, file, o.Key, o.Size)
	if err == nil {
		err = differ(got, o)
	}
	if err == nil || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if b != nil {
		if body, leave := x.store.use(b); body != nil { // In part.
			leave()
			return nil
		}
	}
	return fmt.Errorf("object %s: %w: %w", o.Key, machine.ErrDamaged, err)
}

// build finds the build of an object.
func (x *Export) build(key string) *build {
	_, b, err := x.store.objectPath(key)
	if err != nil {
		return nil
	}
	return b
}
