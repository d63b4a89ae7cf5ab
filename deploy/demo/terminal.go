package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/creack/pty"
)

// terminal types into a shell in the sandbox, through a terminal here of 33 rows and 101 columns.
func (d *Demo) terminal(ctx context.Context) error {
	id, err := d.a(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d.say("$ covey shell %s", id)
	cmd := d.command(ctx, "shell", id)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		return err
	}
	defer f.Close()
	typed := make(chan error, 1)
	go func() {
		_, err := f.WriteString("tty; echo size=$(stty size | tr ' ' x); exit 7\n")
		typed <- err
	}()
	// Reading ends with an error of the device when the shell closes the terminal.
	var size bool
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		d.say("  %s", printable(line))
		size = size || strings.HasSuffix(line, "size=33x101")
	}
	err = errors.Join(<-typed, ctx.Err())
	if cmd.Wait(); err == nil && cmd.ProcessState.ExitCode() != 7 {
		err = fmt.Errorf("covey shell ended with %d, the shell in the sandbox with 7", cmd.ProcessState.ExitCode())
	}
	if err == nil && !size {
		err = errors.New("the shell in the sandbox does not have the size of the terminal here")
	}
	return err
}

// control matches what a terminal does not show: the title of its window (OSC), movements and colours (CSI).
var control = regexp.MustCompile(`\x1b\][^\x07]*\x07|\x1b\[[0-9;?]*[A-Za-z]`)

// printable leaves out what moves the cursor and colours text.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return -1
		}
		return r
	}, control.ReplaceAllString(line, ""))
}
