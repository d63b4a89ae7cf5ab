package mesh

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Progress shows a person which step runs, how long it takes and what came of it. On a terminal a running step is one
// line that is redrawn; elsewhere (CI) it is a line when it starts and a line every 15 s, so that no log looks hung.
type Progress struct {
	w   io.Writer
	tty bool
}

// NewProgress writes to w; nil writes nowhere.
func NewProgress(w io.Writer) *Progress {
	if w == nil {
		return &Progress{w: io.Discard}
	}
	f, ok := w.(*os.File)
	return &Progress{w: w, tty: ok && term.IsTerminal(int(f.Fd()))}
}

// Title prints a heading.
func (p *Progress) Title(format string, args ...any) {
	fmt.Fprintf(p.w, "\n%s\n", fmt.Sprintf(format, args...))
}

// Run runs one step and shows it. do returns a note for people ("cached", "12 packages"); tell shows what it is at.
func (p *Progress) Run(name string, do func(tell func(string)) (note string, err error)) error {
	s := &step{p: p, name: name, began: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	go s.show()
	note, err := do(s.tell)
	close(s.stop)
	<-s.done
	took := fmt.Sprintf("%6.1fs", time.Since(s.began).Seconds())
	if p.tty {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	if err != nil {
		fmt.Fprintf(p.w, "  ✗ %-22s %s  failed\n", name, took)
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(p.w, "  ✓ %-22s %s  %s\n", name, took, note)
	return nil
}

type step struct {
	p          *Progress
	name       string
	began      time.Time
	stop, done chan struct{}

	mu  sync.Mutex
	now string // what it is at; guarded by mu
}

func (s *step) tell(what string) {
	what = strings.TrimSpace(what)
	if len(what) > 70 {
		what = what[:70]
	}
	s.mu.Lock()
	s.now = what
	s.mu.Unlock()
}

func (s *step) at() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *step) show() {
	defer close(s.done)
	every := 15 * time.Second
	if s.p.tty {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			took := time.Since(s.began).Seconds()
			if s.p.tty {
				fmt.Fprintf(s.p.w, "\r\x1b[K  … %-22s %6.1fs  %s", s.name, took, s.at())
			} else {
				fmt.Fprintf(s.p.w, "  … %-22s %6.1fs  %s\n", s.name, took, s.at())
			}
		}
	}
}

// lineTeller is a writer that tells each last line of what is written to it.
type lineTeller struct {
	tell func(string)
	keep tail
}

func (l *lineTeller) Write(b []byte) (int, error) {
	l.keep.add(b)
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if last := lines[len(lines)-1]; strings.TrimSpace(last) != "" {
		l.tell(last)
	}
	return len(b), nil
}

// tail keeps the last bytes of an output, for error messages.
type tail struct{ b []byte }

func (t *tail) add(b []byte) {
	const most = 4096
	t.b = append(t.b, b...)
	if len(t.b) > most {
		t.b = t.b[len(t.b)-most:]
	}
}

func (t *tail) String() string {
	lines := strings.Split(strings.TrimSpace(string(t.b)), "\n")
	if len(lines) > 12 {
		lines = lines[len(lines)-12:]
	}
	return strings.Join(lines, "\n")
}
