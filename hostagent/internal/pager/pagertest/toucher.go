package pagertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/pager/uffd"
)

// imageFD is where a toucher finds the image.
const imageFD = 3

type greeting struct {
	Err  string
	Base uint64
}

// Main makes this process a toucher, if it was started as one; then it does not return.
func Main() {
	text := os.Getenv(roleVariable)
	if text == "" {
		return
	}
	var setup Setup
	var t touched
	err := json.Unmarshal([]byte(text), &setup)
	if err == nil && setup.CPU > 0 {
		err = Pin(setup.CPU - 1)
	}
	if err == nil {
		t.memory, _, err = Prepare(setup) // the userfaultfd stays open, as in a VMM
	}
	out := json.NewEncoder(os.Stdout)
	if err != nil {
		out.Encode(greeting{Err: err.Error()})
		os.Exit(1)
	}
	out.Encode(greeting{Base: uint64(uintptr(unsafe.Pointer(&t.memory[0])))})
	for in := json.NewDecoder(os.Stdin); ; {
		var o Order
		if err := in.Decode(&o); err != nil {
			os.Exit(0)
		}
		out.Encode(t.do(o))
	}
}

// Pin has all threads of this process, and those that they start, run on these CPUs only.
func Pin(cpus ...int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// Prepare maps the memory and hands it to the pager, as a VMM does. It returns its own descriptor of the userfaultfd.
func Prepare(setup Setup) (memory []byte, own int, err error) {
	fd, flags := imageFD, unix.MAP_PRIVATE|unix.MAP_NORESERVE
	if setup.Anonymous {
		fd, flags = -1, flags|unix.MAP_ANONYMOUS
	}
	m, err := unix.Mmap(fd, 0, int(setup.Size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, -1, fmt.Errorf("mmap: %w", err)
	}
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		return nil, -1, err
	}
	defer dev.Close()
	var features uint64
	if setup.Removes {
		features = uffd.FeatureRemove
	}
	u, err := uffd.New(dev, features)
	if err != nil {
		return nil, -1, err
	}
	base := uint64(uintptr(unsafe.Pointer(&m[0])))
	if err := uffd.Register(u, base, uint64(setup.Size)); err != nil {
		return nil, -1, fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	return m, u, HandOver(setup.Socket, u, regionsOf(setup, base))
}

func regionsOf(setup Setup, base uint64) string {
	n := uint64(max(setup.Regions, 1))
	size := uint64(setup.Size) / n
	text := "["
	for i := range n {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":4096,"page_size_kib":4096}`, base+i*size, size, i*size)
	}
	return text + "]"
}

// HandOver sends a handshake.
func HandOver(socket string, uffd int, regions string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	var rights []byte
	if uffd >= 0 {
		rights = unix.UnixRights(uffd)
	}
	_, _, err = conn.WriteMsgUnix([]byte(regions), rights, nil)
	return err
}

// touched is a toucher's memory.
type touched struct{ memory []byte }

func (t *touched) do(o Order) (a Answer) {
	began := time.Now()
	part := t.memory[o.Off : o.Off+o.Len]
	switch o.Do {
	case "touch":
		a.Latencies = touch(part, o.Stride, o.Latencies)
	case "check":
		a.Wrong, a.First = check(t.memory, o)
	case "churn":
		a.Wrong, a.First = churn(t.memory, o)
	case "read":
		a.Byte = part[0]
	case "write":
		for i := range part {
			part[i] = o.Byte
		}
	case "discard":
		if err := unix.Madvise(part, unix.MADV_DONTNEED); err != nil {
			a.Err = err.Error()
		}
	default:
		a.Err = "unknown order " + o.Do
	}
	a.Nanos = time.Since(began).Nanoseconds()
	return a
}

// sink keeps reads from being optimised away.
var sink atomic.Uint32

func touch(m []byte, stride int64, latencies bool) (took []int64) {
	var sum byte
	defer func() { sink.Store(uint32(sum)) }()
	if !latencies {
		for i := int64(0); i < int64(len(m)); i += stride {
			sum += m[i]
		}
		return nil
	}
	for i := int64(0); i < int64(len(m)); i += stride {
		began := time.Now()
		sum += m[i]
		took = append(took, time.Since(began).Nanoseconds())
	}
	return took
}

// check compares pages with what they should be, in an order of each thread's own.
func check(memory []byte, o Order) (wrong int, first int64) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	first = -1
	for n := range max(o.Threads, 1) {
		wg.Go(func() {
			order := rand.New(rand.NewPCG(uint64(n), uint64(os.Getpid())))
			for _, page := range order.Perm(int(o.Len / pageSize)) {
				off := o.Off + int64(page)*pageSize
				if !o.Pattern.Is(memory[off:off+pageSize], off) {
					mu.Lock()
					wrong++
					first = off
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return wrong, first
}

const churned = 16 * pageSize

// churn has threads discard memory while others fault, each in a part of its own.
func churn(memory []byte, o Order) (wrong int, first int64) {
	zeros := Pattern{Zeros: -1}
	var mu sync.Mutex
	var wg sync.WaitGroup
	first = -1
	part := o.Len / int64(o.Threads)
	for n := range int64(o.Threads) {
		wg.Go(func() {
			for off := o.Off + n*part; off+churned <= o.Off+(n+1)*part; off += churned {
				chunk := memory[off : off+churned]
				ok := o.Pattern.Is(chunk[:pageSize], off)
				ok = unix.Madvise(chunk, unix.MADV_DONTNEED) == nil && ok
				for i := int64(0); i < churned; i += pageSize {
					ok = zeros.Is(chunk[i:i+pageSize], off+i) && ok
				}
				chunk[0] = o.Byte
				if ok = chunk[0] == o.Byte && ok; !ok {
					mu.Lock()
					wrong++
					first = off
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return wrong, first
}
