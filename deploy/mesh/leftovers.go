package mesh

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Traces is what a mesh can leave on a machine, by kind, each with a name that a person can look for.
type Traces map[string][]string

// LookAround lists what there is on this machine now of the mesh in dir: processes, mounts, memory images; and of all of Covey's network
// namespaces, links and cgroups, whose names do not tell the mesh. Compare two of them with Since.
func LookAround(dir string) Traces {
	return Traces{
		"process":           processes(dir),
		"network namespace": entries("/run/netns", "cvy"),
		"network link":      entries("/sys/class/net", "cvy"),
		"mount":             mounts(),
		"memory image":      entries(filepath.Dir(memoryDir(dir)), filepath.Base(dir)),
		"directory":         entries(filepath.Dir(dir), filepath.Base(dir)),
		"cgroup":            cgroups(),
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

// cgroups finds sandboxes' groups in every hierarchy, v1 and v2: the directories below one named for Covey.
func cgroups() []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/covey*/*", "/sys/fs/cgroup/*/covey*/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			if st, err := os.Stat(p); err == nil && st.IsDir() {
				found = append(found, p)
			}
		}
	}
	return found
}
