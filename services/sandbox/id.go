package sandbox

import (
	"crypto/rand"
	"regexp"

	"github.com/oklog/ulid/v2"
)

// Prefixes of ids.
const (
	sandboxPrefix  = "sb_"
	snapshotPrefix = "snap_"
	restorePrefix  = "rst_"
	keyPrefix      = "key_"
)

// newID makes an id: the prefix and a ULID, so that ids sort by time.
func newID(prefix string) string {
	return prefix + ulid.MustNew(ulid.Now(), rand.Reader).String()
}

var (
	sandboxID  = regexp.MustCompile(`^sb_[0-9A-HJKMNP-TV-Z]{26}$`)
	snapshotID = regexp.MustCompile(`^snap_[0-9A-HJKMNP-TV-Z]{26}$`)
	keyID      = regexp.MustCompile(`^key_[0-9A-HJKMNP-TV-Z]{26}$`)
)

func checkSandboxID(id string) error {
	if !sandboxID.MatchString(id) {
		return field("sandbox_id", `must be "sb_" and 26 characters, got %q`, clip(id))
	}
	return nil
}

// clip bounds what an error repeats of a request.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
