package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coveyhq/covey/hostagent/internal/cpu"
	"github.com/coveyhq/covey/hostagent/internal/vmm"
	"github.com/coveyhq/covey/hostagent/internal/vmm/qemu/qmp"
	"github.com/coveyhq/covey/hostagent/internal/vmm/statefile"
)

// emulated is the processor under TCG: x86-64-v2, which what Debian and Python's wheels are built for needs, with instructions for random numbers.
// A guest takes an eighth less of the host's time from its restore to its first answer than with "max": what it does with newer
// instructions QEMU emulates in more steps than what it does without.
const emulated = "Nehalem-v1,+rdrand"

// generic is what a baseline under KVM is laid upon: a processor of no make in particular, which is the same on all hosts of a vendor.
const generic = "kvm64-v1"

// layout is raised whenever the command line changes in a way that keeps older states from loading.
const layout = 2

// series is a version without its third number: bug fixes keep the state's format.
func series(version string) string { return version[:strings.LastIndexByte(version, '.')] }

// model is what -cpu is given for a VM without mask and baseline.
func (c *Config) model() string {
	switch {
	case c.CPU != "":
		return c.CPU
	case c.Accel == vmm.KVM:
		return "host"
	}
	return emulated
}

// processors are those that VMs here can have.
type processors struct {
	series string
	accel  vmm.Accel
	// model is the standard one, and plain its features, of which lacks are not there really.
	model        string
	plain, lacks []string
	// has is what guests can have in all: the mask is taken away.
	has []string
	// generic is what the processor that baselines are laid upon has of its own; used says whether they are.
	generic []string
	host    string
}

// askProcessors asks QEMU what the processors have.
func askProcessors(conf Config, series string) (processors, error) {
	p := processors{series: series, accel: conf.Accel, model: conf.model(), host: cpu.Host()}
	ctx, cancel := context.WithTimeout(context.Background(), findOut)
	defer cancel()
	err := interview(ctx, conf, func(c *qmp.Client) error {
		declared, err := expand(ctx, c, p.model)
		if err != nil {
			return err
		}
		// A model's features are not there where the accelerator lacks them; "max" has all that are.
		most, err := expand(ctx, c, "max")
		if err != nil {
			return err
		}
		p.plain = cpu.Whole(cpu.Common(declared, most))
		p.lacks = cpu.Minus(declared, p.plain)
		p.generic, err = expand(ctx, c, generic)
		return err
	})
	if err != nil {
		return p, fmt.Errorf("the processor's features: %w", err)
	}
	p.has = cpu.Whole(cpu.Minus(p.plain, slices.Sorted(slices.Values(conf.Mask))))
	return p, nil
}

// interview starts a QEMU without a machine, and ends it after f.
func interview(ctx context.Context, conf Config, f func(*qmp.Client) error) error {
	dir, err := os.MkdirTemp("", "covey-qemu-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "qmp.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	var words strings.Builder
	cmd := exec.CommandContext(ctx, conf.Binary, "-M", "none", "-accel", string(conf.Accel), "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=control,fd=3,server=on,wait=off", "-mon", "chardev=control,mode=control")
	cmd.ExtraFiles, cmd.Stderr, cmd.WaitDelay = []*os.File{socket}, &words, time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
		l.Close() // and whoever waits for an answer hears of it
	}()
	socket.Close()
	err = ask(ctx, path, f)
	cmd.Process.Kill()
	<-ended
	if err != nil && words.Len() > 0 {
		err = fmt.Errorf("%w: QEMU says %.300q", err, words.String())
	}
	return err
}

func ask(ctx context.Context, path string, f func(*qmp.Client) error) error {
	c, err := qmp.Dial(ctx, path, func(qmp.Event) {})
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// expand asks for the features of a model as it is given to -cpu.
func expand(ctx context.Context, c *qmp.Client, model string) ([]string, error) {
	name, rest, _ := strings.Cut(model, ",")
	props := map[string]any{}
	for _, f := range strings.Split(rest, ",") {
		switch {
		case strings.HasPrefix(f, "+"):
			props[f[1:]] = true
		case strings.HasPrefix(f, "-"):
			props[f[1:]] = false
		case strings.HasSuffix(f, "=on"), strings.HasSuffix(f, "=off"):
			key, value, _ := strings.Cut(f, "=")
			props[key] = value == "on"
		}
	}
	var answer struct {
		Model struct {
			Props map[string]any `json:"props"`
		} `json:"model"`
	}
	err := c.Do(ctx, "query-cpu-model-expansion", map[string]any{"type": "full", "model": map[string]any{"name": name, "props": props}}, &answer)
	return cpu.FromQEMU(answer.Model.Props), err
}

// boot is the processor of a VM that is booted with a baseline, or without.
func (p *processors) boot(baseline []string) vmm.CPU {
	c := vmm.CPU{Machine: p.machine(p.processor()), Features: cpu.Limit(p.has, baseline)}
	c.Masked = cpu.Minus(p.plain, c.Features)
	if len(baseline) > 0 && p.passesThrough() {
		c.Machine = p.machine(p.baselined())
		c.Model = with(generic, "+", cpu.Minus(c.Features, p.generic), "-", cpu.Minus(p.generic, c.Features))
		return c
	}
	c.Model = with(p.model, "-", p.lacks, "-", c.Masked)
	return c
}

// former is the processor of a VM that says nothing of it: an older agent has booted it.
func (p *processors) former() vmm.CPU {
	return vmm.CPU{Machine: p.machine(p.processor()), Model: p.model, Features: p.plain}
}

// with adds features to a model; signs and lists alternate.
func with(model string, changes ...any) string {
	var b strings.Builder
	b.WriteString(model)
	for i := 0; i < len(changes); i += 2 {
		for _, f := range changes[i+1].([]string) {
			fmt.Fprintf(&b, ",%s%s", changes[i], cpu.QEMU(f))
		}
	}
	return b.String()
}

// passesThrough tells whether guests see the host's own processor, which is another on each kind of host.
func (p *processors) passesThrough() bool {
	name, _, _ := strings.Cut(p.model, ",")
	return p.accel == vmm.KVM && (name == "host" || name == "max")
}

// machine names what a state file depends on. The machine microvm has no versions of its own, so QEMU's stands for them.
func (p *processors) machine(processor string) string {
	return fmt.Sprintf("microvm-%s.%d-%s-%s", p.series, layout, p.accel, processor)
}

// processor names what a guest sees without mask and baseline.
func (p *processors) processor() string {
	if p.passesThrough() {
		return p.model + "(" + p.host + ")"
	}
	return p.model
}

// baselined names the processor that baselines are laid upon; KVM's guests always see the host's vendor.
func (p *processors) baselined() string {
	vendor, _, _ := strings.Cut(p.host, "-")
	return generic + "(" + vendor + ")"
}

// machines are those whose states load here.
func (p *processors) machines() []string {
	list := []string{p.machine(p.processor())}
	if p.passesThrough() {
		list = append(list, p.machine(p.baselined()))
	}
	return list
}

// legalModel is what a state's model may look like, as it is given to QEMU.
var legalModel = regexp.MustCompile(`^[A-Za-z0-9_.-]+(,[+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?)*$`)

// fits says what keeps a VM with a processor from running here.
func (p *processors) fits(c vmm.CPU) error {
	if !slices.Contains(p.machines(), c.Machine) {
		return fmt.Errorf("%w: its machine is %s, this host has %s", vmm.ErrIncompatible, c.Machine, strings.Join(p.machines(), " and "))
	}
	if missing := cpu.Minus(c.Features, p.has); len(missing) > 0 {
		return fmt.Errorf("%w: its processor has %s, which guests of this host cannot have", vmm.ErrIncompatible, cpu.Join(missing))
	}
	if len(c.Model) > statefile.MaxDescription || !legalModel.MatchString(c.Model) {
		return fmt.Errorf("%w: its processor is %.200q, which is no model", vmm.ErrIncompatible, c.Model)
	}
	return nil
}
