package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is what is known of one series of Firecracker's versions.
type release struct {
	// series is "1.16", format the state format that its first version writes; 0 where the binary has to say.
	series string
	format int
	// overrides: a TAP device may be renamed when a state is loaded. Before, it has to have the name that it had.
	overrides bool
	// trackOnLoad: the field that turns dirty tracking on for a loaded state is track_dirty_pages. Before, it is enable_diff_snapshots.
	trackOnLoad bool
}

// releases are those that this driver is written for, from Firecracker's changelog. Older ones pass states through a format in which a
// version is asked for, which this driver does not do. Later ones are taken to be like the last.
var releases = []release{
	{series: "1.7", format: 1},
	{series: "1.8", format: 2},
	{series: "1.9", format: 3},
	{series: "1.10", format: 4}, // 1.10.0 has 3
	{series: "1.11", format: 5},
	{series: "1.12", format: 6, overrides: true},
	{series: "1.13", format: 8, overrides: true, trackOnLoad: true},
	{series: "1.14", format: 8, overrides: true, trackOnLoad: true},
	{series: "1.15", format: 9, overrides: true, trackOnLoad: true},
	{series: "1.16", format: 10, overrides: true, trackOnLoad: true},
}

// version is what a binary says of itself.
type version struct {
	// text is "1.16.1".
	text string
	// major and minor are those of the state format: states of the same major and of no later minor load.
	major, minor int
	release      release
}

var (
	versionLine = regexp.MustCompile(`(?m)^Firecracker v(\d+)\.(\d+)\.(\d+\S*)`)
	formatLine  = regexp.MustCompile(`(?m)^v(\d+)\.(\d+)\.\d+`)
)

// askVersion runs the binary.
func askVersion(binary string) (v version, err error) {
	out, err := run(binary, "--version")
	if err != nil {
		return v, err
	}
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		first, _, _ := strings.Cut(out, "\n")
		return v, fmt.Errorf("%s --version says %q, which is no Firecracker", binary, first)
	}
	v.text = m[1] + "." + m[2] + "." + m[3]
	if v.release, err = releaseOf(m[1], m[2]); err != nil {
		return v, fmt.Errorf("%s: %w", binary, err)
	}
	if out, err = run(binary, "--snapshot-version"); err != nil {
		return v, err
	}
	if m = formatLine.FindStringSubmatch(out); m == nil {
		return v, fmt.Errorf("%s --snapshot-version says %.100q, which is no version", binary, out)
	}
	v.major, _ = strconv.Atoi(m[1])
	v.minor, _ = strconv.Atoi(m[2])
	return v, nil
}

func run(binary, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, flag)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %.200s", binary, flag, err, words.String())
	}
	return out.String(), nil
}

// releaseOf finds what is known of a version.
func releaseOf(major, minor string) (release, error) {
	last := releases[len(releases)-1]
	for _, r := range releases {
		if r.series == major+"."+minor {
			return r, nil
		}
	}
	n, err := strconv.Atoi(minor)
	lastMinor, _ := strconv.Atoi(strings.TrimPrefix(last.series, "1."))
	if err == nil && (major == "1" && n > lastMinor || major > "1") {
		later := last
		later.series, later.format = major+"."+minor, 0
		return later, nil
	}
	return release{}, fmt.Errorf("version %s.%s of Firecracker is too old: this driver needs %s or later", major, minor, releases[0].series)
}

// loadersOf says which releases load states of a format, for a sentence.
func loadersOf(major, minor int) string {
	var names []string
	for _, r := range releases {
		if r.format == major {
			names = append(names, r.series)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("a Firecracker of state format %d.%d or later %d.x can", major, minor, major)
	}
	return fmt.Sprintf("Firecracker %s can (state format %d.%d)", strings.Join(names, " or "), major, minor)
}

// loads tells whether states of a format load in this version.
func (v version) loads(major, minor int) bool { return v.major == major && minor <= v.minor }
