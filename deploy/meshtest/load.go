package meshtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Load is what a sandbox has in its memory and on its disk, to be found again.
type Load struct {
	// ID is the sandbox; another one that was made of it has the same load.
	ID           string
	memory, disk string
	s            *Suite
}

// burden makes the load, and prints the checksums of what is in memory and on disk.
const burden = `echo 0 >/run/n; dd if=/dev/urandom of=/run/blob bs=1M count=%[1]d 2>/dev/null; dd if=/dev/urandom of=/blob bs=1M count=%[1]d 2>/dev/null; sync
sh -c 'n=0; while :; do n=$((n+1)); echo $n >/run/.n; mv /run/.n /run/n; sleep 0.05; done' >/dev/null 2>&1 </dev/null &
sha256sum </run/blob; sha256sum </blob`

// Burden gives a sandbox a counter that counts in a shell's memory, and so many MiB of random bytes in memory and on disk.
func (s *Suite) Burden(t *testing.T, ctx context.Context, id string, mb int) Load {
	t.Helper()
	sums := strings.Split(s.Sh(t, ctx, id, fmt.Sprintf(burden, mb)), "\n")
	if len(sums) != 2 {
		t.Fatalf("the checksums of %s are %q", id, sums)
	}
	l := Load{ID: id, memory: sums[0], disk: sums[1], s: s}
	l.counts(t, ctx)
	return l
}

// Of is the same load in another sandbox.
func (l Load) Of(id string) Load {
	l.ID = id
	return l
}

// Remember takes what is in the sandbox's memory now for what is to be found.
func (l *Load) Remember(t *testing.T, ctx context.Context) {
	t.Helper()
	l.memory = l.s.Sh(t, ctx, l.ID, "sha256sum </run/blob")
}

// counts waits until the counter has counted on.
func (l Load) counts(t *testing.T, ctx context.Context) {
	t.Helper()
	n := l.s.Look(t, ctx, l.ID, "cat /run/n")
	Eventually(t, 20*time.Second, "the counter of "+l.ID+" counts on", func() bool { return l.s.Look(t, ctx, l.ID, "cat /run/n") != n })
}

// Check finds the load again: memory, disk and the counter's process.
func (l Load) Check(t *testing.T, ctx context.Context) {
	t.Helper()
	memory, disk, _ := strings.Cut(l.s.Look(t, ctx, l.ID, "echo 3 >/proc/sys/vm/drop_caches; sha256sum </run/blob; sha256sum </blob"), "\n")
	if memory != l.memory {
		t.Errorf("%s: its memory is not what it was", l.ID)
	}
	if disk != l.disk {
		t.Errorf("%s: its disk is not what it was", l.ID)
	}
	l.counts(t, ctx)
}
