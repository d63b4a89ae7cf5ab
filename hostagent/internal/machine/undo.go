package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// undoTime bounds one undoing.
const undoTime = 20 * time.Second

// undo is a stack of what must be done to be rid of what was made. It belongs to one goroutine at a time.
type undo struct {
	steps []undoStep
}

type undoStep struct {
	name string
	do   func(context.Context) error
}

// push adds the undoing of what has just been made.
func (u *undo) push(name string, do func(context.Context) error) {
	u.steps = append(u.steps, undoStep{name, do})
}

// drop takes a step off, wherever it is: what it would undo is to stay.
func (u *undo) drop(name string) {
	u.steps = slices.DeleteFunc(u.steps, func(s undoStep) bool { return s.name == name })
}

// run undoes everything, last made first, and forgets it. Each step is tried whatever became of the ones before, in a context
// that keeps ctx's values and not its end.
func (u *undo) run(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		s := u.steps[i]
		if err := bounded(ctx, s.do); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

func bounded(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	return do(ctx)
}
