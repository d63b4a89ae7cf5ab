package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// quiet is how long something may take without a word.
const quiet = 300 * time.Millisecond

// while does something that may take long, and shows on a terminal that it goes on.
func (a *app) while(what string, do func() error) error {
	if !onTerminal(a.err) {
		return do()
	}
	done := make(chan struct{})
	var spinner sync.WaitGroup
	spinner.Go(func() { spin(a.err, what, done) })
	err := do()
	close(done)
	spinner.Wait()
	return err
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func spin(w io.Writer, what string, done <-chan struct{}) {
	began := time.Now()
	wait := time.NewTimer(quiet)
	defer wait.Stop()
	select {
	case <-done:
		return
	case <-wait.C:
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		fmt.Fprintf(w, "\r\x1b[K%c %s %.1f s", []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[i%10], what, time.Since(began).Seconds())
		select {
		case <-done:
			fmt.Fprint(w, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}

// meter counts bytes that pass, and shows them on a terminal.
type meter struct {
	io.Reader
	w    io.Writer // nil: shows nothing
	what string
	size int64 // 0: not known

	passed int64
	last   time.Time
}

func (a *app) meter(r io.Reader, what string, size int64) *meter {
	m := &meter{Reader: r, what: what, size: size, last: time.Now()}
	if onTerminal(a.err) {
		m.w = a.err
	}
	return m
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.passed += int64(n)
	if m.w != nil && time.Since(m.last) > quiet {
		m.last = time.Now()
		of := ""
		if m.size > 0 {
			of = fmt.Sprintf(" of %s, %d%%", size(m.size), 100*m.passed/m.size)
		}
		fmt.Fprintf(m.w, "\r\x1b[K%s: %s%s", m.what, size(m.passed), of)
	}
	if err != nil && m.w != nil {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
	return n, err
}
