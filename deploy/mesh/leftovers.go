package mesh

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Traces is what a mesh can leave on a machine, by kind, each with a name that a person can look for.
type Traces map[string][]string

// LookAround lists what there is on this machine now of the mesh in dir: processes, mounts, memory images; and of all of Covey's network
// namespaces, and links, but those of other agents that run. Compare two of them with Since.
func LookAround(dir string) Traces {
	return Traces{
		"process":           processes(dir),
		"network namespace": append(ours(entries(namespaces, "cvy"), dir), entries(namespaces, backbonePrefix(dir))...),
		"network link":      ours(entries("/sys/class/net", "cvy"), dir),
		"mount":             ours(mounts(), dir),
		"memory image":      entries(filepath.Dir(memoryDir(dir)), filepath.Base(dir)),
		"directory":         entries(filepath.Dir(dir), filepath.Base(dir)),
		"cgroup":            cgroups(dir),
	}
}

// Since lists what is there now and was not there before, as "kind name".
func (t Traces) Since(before Traces) []string {
	var left []string
	for kind, names := range t {
		for _, n := range names {
			if !slices.Contains(before[kind], n) {
				left = append(left, kind+" "+n)
			}
		}
	}
	slices.Sort(left)
	return left
}

func entries(dir, prefix string) []string {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names
}

// ours leaves out what belongs to another agent that holds its range of addresses: names are "cvy<range>-<n>", and the range's file names
// the agent's state directory.
func ours(paths []string, dir string) []string {
	return slices.DeleteFunc(paths, func(p string) bool {
		if name := filepath.Base(p); strings.HasPrefix(name, "covey-") && filepath.Dir(p) == namespaces {
			return !strings.HasPrefix(name, backbonePrefix(dir)) // A site of a mesh.
		}
		rng, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(p), "cvy"), "-")
		owner, err := os.ReadFile("/run/covey/net/" + rng)
		return err == nil && !strings.HasPrefix(string(owner), dir+"/")
	})
}

// processes finds those that were started with something of the mesh's directory: its daemons by their configuration, VMMs by their sockets.
func processes(dir string) []string {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []string
	for _, e := range list {
		args, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !strings.Contains(string(args), dir+"/") {
			continue
		}
		name, _, _ := strings.Cut(string(args), "\x00")
		found = append(found, filepath.Base(name)+" "+e.Name())
	}
	return found
}

func mounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 4 && (strings.Contains(fields[4], "/covey") || strings.Contains(fields[4], "/cvy")) {
			found = append(found, fields[4])
		}
	}
	return found
}

// cgroups finds the groups of the mesh's agents, in every hierarchy, v1 and v2: they are named for a hash of the agent's state directory.
func cgroups(dir string) []string {
	var found []string
	for host := 'a'; host < 'a'+maxHosts; host++ {
		sum := sha256.Sum256([]byte(filepath.Join(dir, "host-"+string(host))))
		for _, hierarchy := range []string{"/sys/fs/cgroup/covey/", "/sys/fs/cgroup/*/covey/"} {
			paths, _ := filepath.Glob(hierarchy + hex.EncodeToString(sum[:4]))
			found = append(found, paths...)
		}
	}
	return found
}
