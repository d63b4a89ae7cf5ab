package firecracker_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coveyhq/covey/hostagent/internal/vmm/firecracker/api"
)

// The scripted Firecracker is this test's executable, started by the driver in the place of Firecracker, in the same cage. It serves the
// API as its script says, which is the beginning of its id:
//
//	ok       all goes well
//	mute     it never answers
//	hang     it does not answer PATCH
//	garbage  it answers PATCH with something else than HTTP
//	chatter  it answers GET with JSON that is no InstanceInfo
//	endless  it answers PATCH with a body that never ends
//	nofault  it refuses PATCH without a fault_message
//	leave    it closes the connection on PATCH and lives on
//	refuse   it refuses to start the guest
//	exit     it says why and exits with 3 at once
//	seccomp  it exits on PATCH as when it made a forbidden system call
//	hungry   it takes 256 MiB of memory on PATCH
//	short    its snapshots have too little memory
//	link     it puts symbolic links in the place of what it saved
//	flood    it prints without end
const (
	scriptedVersion = "Firecracker v1.16.1\n"
	scriptedFormat  = "v10.0.0\n"
)

// actScripted plays Firecracker where this process was started for it, and returns otherwise.
func actScripted() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "--version":
		fmt.Print(scriptedVersion)
	case len(os.Args) == 2 && os.Args[1] == "--snapshot-version":
		fmt.Print(scriptedFormat)
	case slices.Contains(os.Args, "--api-sock"):
		s := &scripted{state: api.NotStarted}
		s.script, _, _ = strings.Cut(argument("--id"), "-")
		if err := s.serve(argument("--api-sock")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		return
	}
	os.Exit(0)
}

func argument(name string) string {
	if i := slices.Index(os.Args, name); i >= 0 && i+1 < len(os.Args) {
		return os.Args[i+1]
	}
	return ""
}

type scripted struct {
	script string
	state  string
	hoard  [][]byte
}

func (s *scripted) serve(path string) error {
	if s.script == "exit" {
		fmt.Fprintln(os.Stderr, "scripted: I do not want to")
		os.Exit(3)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		s.talk(c)
	}
}

func (s *scripted) talk(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if s.misbehave(c, req) {
			continue
		}
		status, answer := s.answer(req.Method, req.URL.Path, body)
		// As Firecracker writes it.
		fmt.Fprintf(c, "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", status)
		if answer != nil {
			text, _ := json.Marshal(answer)
			fmt.Fprintf(c, "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		} else {
			fmt.Fprint(c, "\r\n")
		}
	}
}

// misbehave does what the script says instead of an answer, and tells whether it did.
func (s *scripted) misbehave(c net.Conn, req *http.Request) bool {
	patch := req.Method == "PATCH"
	switch {
	case s.script == "mute", s.script == "hang" && patch:
	case s.script == "garbage" && patch:
		fmt.Fprint(c, "SSH-2.0-OpenSSH_9.2\r\n\r\n")
	case s.script == "chatter" && req.Method == "GET":
		fmt.Fprint(c, "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n[1]")
	case s.script == "endless" && patch:
		fmt.Fprint(c, "HTTP/1.1 200 \r\nContent-Length: 999999999999\r\n\r\n")
	case s.script == "nofault" && patch:
		fmt.Fprint(c, "HTTP/1.1 500 \r\nContent-Length: 2\r\n\r\n{}")
	case s.script == "leave" && patch:
		c.Close()
	case s.script == "seccomp" && patch:
		os.Exit(148)
	case s.script == "hungry" && patch:
		for range 256 { // and no more, lest a limit that does not work takes the machine down
			b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
			if err != nil {
				return true
			}
			s.hoard = append(s.hoard, b)
		}
		os.Exit(1)
	default:
		return false
	}
	return true
}

func (s *scripted) answer(method, path string, body []byte) (int, any) {
	refuse := func(why string) (int, any) { return 400, api.Fault{FaultMessage: why} }
	switch method + " " + path {
	case "GET /":
		return 200, api.InstanceInfo{AppName: "Firecracker", ID: argument("--id"), State: s.state, VMMVersion: "1.16.1"}
	case "PUT /actions":
		if s.script == "refuse" {
			return refuse("scripted: no guest today")
		}
		s.state = api.Running
		fmt.Println("scripted: the guest runs")
		if s.script == "flood" {
			for range 2 << 10 {
				fmt.Println(strings.Repeat("x", 1<<10))
			}
		}
	case "PUT /snapshot/load":
		s.state = api.Paused
	case "PATCH /vm":
		var vm api.VM
		if err := json.Unmarshal(body, &vm); err != nil {
			return refuse(err.Error())
		}
		s.state = map[string]string{api.Paused: api.Paused, api.Resumed: api.Running}[vm.State]
	case "PUT /snapshot/create":
		var c api.SnapshotCreate
		if err := json.Unmarshal(body, &c); err != nil {
			return refuse(err.Error())
		}
		if err := s.save(c); err != nil {
			return refuse(err.Error())
		}
	}
	return 204, nil
}

// save writes a state, and a memory of 64 MiB in which two pages are dirty.
func (s *scripted) save(c api.SnapshotCreate) error {
	if s.script == "link" {
		os.Remove(c.SnapshotPath)
		return os.Symlink("/etc/passwd", c.SnapshotPath)
	}
	if err := os.WriteFile(c.SnapshotPath, []byte("a scripted state"), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(c.MemFilePath, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(64 << 20)
	if s.script == "short" {
		size /= 2
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	for _, off := range []int64{4096, 1 << 20} {
		if _, err := f.WriteAt([]byte(strings.Repeat("d", 4096)), off); err != nil {
			return err
		}
	}
	return nil
}
