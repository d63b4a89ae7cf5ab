// Package leaktest fails a test binary that leaves goroutines behind. Those that are only about to end have time to: on a busy machine one that was told
// to end, or whose connection was closed, may not have got a processor yet.
package leaktest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long a goroutine may take to end.
const patience = 30 * time.Second

// Main runs a package's tests and returns the code to exit with. A leak is an error of a run that is good otherwise.
func Main(m *testing.M) int { return Check(m.Run()) }

// Check looks for goroutines that are left and returns the code, or 1 where it was 0 and some are.
func Check(code int) int {
	if code != 0 {
		return code
	}
	err := goleak.Find()
	// Find itself waits for half a second.
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
