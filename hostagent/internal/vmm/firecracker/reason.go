package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// codes are Firecracker's exit codes (FcExitCode in its source).
var codes = map[int]string{
	148: "it made a system call that its seccomp filter forbids", 149: "bus error (SIGBUS)", 150: "segmentation fault (SIGSEGV)",
	151: "a file grew beyond its limit (SIGXFSZ)", 152: "bad configuration", 153: "bad arguments", 154: "it used more CPU time than its limit (SIGXCPU)",
	155: "broken pipe (SIGPIPE)", 156: "hang-up (SIGHUP)", 157: "illegal instruction (SIGILL)",
}

// reason puts an end in a sentence.
func (v *VM) reason(e vmm.Exit) vmm.Exit {
	v.mu.Lock()
	verdict := v.verdict
	v.mu.Unlock()
	panic, halted := "", false
	if v.console != nil {
		panic, halted = v.console.end()
	}
	guest := true // the guest's own doing, in which the VMM has nothing to say
	switch {
	case halted:
		// The driver has killed it, which is how the guest's power goes off.
		e.Code, e.Signal, e.Reason = 0, 0, "the guest powered off"
	case e.Code == 0 && panic != "":
		e.Reason = fmt.Sprintf("the guest's kernel panicked: %q", panic)
	case e.Code == 0:
		e.Reason = "the guest rebooted or its processor shut down, which ends a sandbox"
	default:
		guest = false
	}
	if guest {
		return e
	}
	switch {
	case verdict != "":
		e.Reason = verdict + ", so it was killed"
	case e.Signal == int(kill) && v.outOfMemory():
		e.Reason += ": it was out of memory, by the limit of its cgroup"
	case codes[e.Code] != "":
		e.Reason += ": " + codes[e.Code]
	}
	for _, words := range []string{v.Process().Words(), v.words.text()} {
		if words != "" {
			e.Reason += fmt.Sprintf("; its last words: %q", words)
		}
	}
	return e
}

// outOfMemory tells whether the kernel has killed a process of the VM's cgroup for its memory.
func (v *VM) outOfMemory() bool {
	for _, procs := range v.cfg.CgroupProcs {
		for _, name := range []string{"memory.events", "memory.oom_control"} { // cgroup v2, v1
			b, err := os.ReadFile(filepath.Join(filepath.Dir(procs), name))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				if n, ok := strings.CutPrefix(line, "oom_kill "); ok && strings.TrimSpace(n) != "0" {
					return true
				}
			}
		}
	}
	return false
}
