package qemu

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// reason puts an end in a sentence.
func (v *VM) reason(e vmm.Exit) vmm.Exit {
	v.mu.Lock()
	shutdown := v.shutdown
	v.mu.Unlock()
	if e.Code == 0 {
		if text := guestReason(shutdown, v.panicLine()); text != "" {
			e.Reason = text
		}
	}
	if words := v.Process().Words(); words != "" {
		e.Reason += fmt.Sprintf("; its last words: %q", lastLines(words, 3))
	}
	return e
}

// guestReason says what a guest did to make QEMU end in good order.
func guestReason(shutdown, panic string) string {
	switch {
	case shutdown == "guest-shutdown":
		return "the guest powered off"
	case panic != "" && (shutdown == "guest-reset" || shutdown == "guest-panic"):
		return fmt.Sprintf("the guest's kernel panicked: %q", panic)
	case shutdown == "guest-reset":
		return "the guest rebooted, which ends a sandbox"
	case shutdown == "host-signal":
		return "the VMM was told to end by a signal"
	case shutdown != "":
		return "the VMM ended: " + shutdown
	}
	return ""
}

var panicLine = regexp.MustCompile(`Kernel panic - not syncing: ([^\r\n]{1,200})`)

// panicLine is what the guest's kernel said in the end, if it panicked.
func (v *VM) panicLine() string {
	f, err := os.OpenFile(v.cfg.ConsolePath, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	// A panic prints registers and a stack, and the kernel says it again below them.
	const tail = 16 << 10
	from := max(v.consoleStart, st.Size()-tail)
	b, err := io.ReadAll(io.NewSectionReader(f, from, tail))
	if err != nil {
		return ""
	}
	if m := panicLine.FindSubmatch(b); m != nil {
		return strings.ToValidUTF8(string(m[1]), "?")
	}
	return ""
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
