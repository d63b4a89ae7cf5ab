package vmmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/vmm"
)

// agentVariable holds a task for a process that plays an agent which ends.
const agentVariable = "COVEY_VMMTEST_AGENT"

// task is what the agent is to start: it restores Config from State, sets it going and ends.
type task struct {
	Config vmm.Config
	State  string
}

// Main plays the agent where the suite started this process for it, and returns otherwise. TestMain begins with it.
func Main(driver func() (vmm.Driver, error)) {
	text := os.Getenv(agentVariable)
	if text == "" {
		return
	}
	h, err := agent(text, driver)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(h)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func agent(text string, driver func() (vmm.Driver, error)) (vmm.Handle, error) {
	var job task
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return vmm.Handle{}, err
	}
	job.Config.Memory = os.NewFile(3, "memory")
	d, err := driver()
	if err != nil {
		return vmm.Handle{}, err
	}
	vm, err := d.Restore(context.Background(), job.Config, job.State)
	if err != nil {
		return vmm.Handle{}, err
	}
	return vm.Handle(), vm.Cont(context.Background())
}

func testReopen(t *testing.T, l *lab, base *snapshot) {
	s := l.place(t, base)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	memory := s.cfg.Memory
	s.cfg.Memory = nil
	text, err := json.Marshal(task{s.cfg, base.state})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Memory = memory
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), agentVariable+"="+string(text))
	cmd.ExtraFiles = []*os.File{memory}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the agent: %v", err)
	}
	var h vmm.Handle
	if err := json.Unmarshal(out, &h); err != nil {
		t.Fatal(err)
	}
	cpu := l.driver.CPU(l.driver.Capabilities().CPUFeatures)
	cpu.Masked = []string{"as it was"}
	s.cfg.CPU = &cpu
	vm, err := l.driver.Reopen(t.Context(), s.cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	s.own(vm)
	if got := s.Handle(); got != h {
		t.Errorf("its handle is %+v, was %+v", got, h)
	}
	if !reflect.DeepEqual(vm.CPU(), cpu) {
		t.Errorf("its processor is %+v, was %+v", vm.CPU(), cpu)
	}
	s.cfg.CPU = nil
	s.ask("touch 6 16")
	sum := s.ask("sum")
	snap := s.save()
	if err := s.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := s.ended(); e.Reason == "" || e.Time.IsZero() {
		t.Errorf("its end is %+v", e)
	}
	if got := l.clone(t, snap).ask("sum"); got != sum {
		t.Errorf("memory saved after the taking over has the sum %s, want %s", got, sum)
	}
}
