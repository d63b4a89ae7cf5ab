// Package lint enforces the import rules of ARCHITECTURE.md on the whole checkout.
package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const ours = "github.com/coveyhq/covey/"

type pkg struct {
	ImportPath, Module string
	Imports            []string
}

// packages lists every package of the workspace with its direct imports, tests left out.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "../../proto/...", "../../services/...", "../../scheduler/...",
		"../../snapshotsvc/...", "../../hostagent/...", "../../gateway/...", "../../guest/...", "../../deploy/...", "../../bench/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.Module, _, _ = strings.Cut(strings.TrimPrefix(p.ImportPath, ours), "/")
		all = append(all, p)
	}
}

// isTransport tells imports that belong in adapters: gRPC, generated code, SQL.
func isTransport(path string) bool {
	return strings.HasPrefix(path, "google.golang.org/grpc") || strings.HasPrefix(path, ours+"proto/") ||
		strings.HasPrefix(path, "github.com/jackc/pgx") || path == "database/sql"
}

// domain packages decide things; they know neither gRPC nor SQL.
var domain = []string{
	"services/chassis/fault", "services/chassis/cpufeature", "services/sandbox", "scheduler/plan", "scheduler/book", "scheduler/baseline", "snapshotsvc/snapfmt", "snapshotsvc/buildfmt", "snapshotsvc/registry", "hostagent/internal/machine",
	"hostagent/internal/vmm", "hostagent/internal/cpu", "hostagent/internal/vmm/tether", "hostagent/internal/vmm/statefile", "hostagent/internal/pager", "hostagent/internal/disk", "hostagent/internal/network",
	"hostagent/internal/image", "hostagent/internal/journal", "hostagent/internal/jail", "hostagent/internal/snapstore",
}

func TestDomainPackagesKnowNeitherGRPCNorSQL(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		for _, d := range domain {
			if p.ImportPath != ours+d {
				continue
			}
			seen[d] = true
			for _, i := range p.Imports {
				if isTransport(i) {
					t.Errorf("%s imports %s: move that into an adapter", p.ImportPath, i)
				}
			}
		}
	}
	for _, d := range domain {
		if !seen[d] {
			t.Errorf("domain package %s is not there: correct this list", d)
		}
	}
}

func TestDaemonsMeetOnlyOverProto(t *testing.T) {
	// What a module may import of the others. The chassis is what daemons share; formats, the guest's clock and the mesh are libraries.
	allowed := map[string][]string{
		"proto":       {},
		"guest":       {"proto/"},
		"services":    {"proto/"},
		"scheduler":   {"proto/", "services/chassis"},
		"snapshotsvc": {"proto/", "services/chassis"},
		"hostagent":   {"proto/", "services/chassis", "snapshotsvc/snapfmt", "snapshotsvc/buildfmt", "guest/tsc"},
		"gateway":     {"proto/", "services/chassis"},
		"deploy":      {"proto/"},
		"bench":       {"proto/", "deploy/mesh", "scheduler/plan", "scheduler/book", "guest/tsc"},
	}
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			rest, isOurs := strings.CutPrefix(i, ours)
			if !isOurs || strings.HasPrefix(rest, p.Module+"/") {
				continue
			}
			ok := false
			for _, a := range allowed[p.Module] {
				ok = ok || strings.HasPrefix(rest, a)
			}
			if !ok {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
	}
}

func TestSnapfmtImportsTheStandardLibraryAlone(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != ours+"snapshotsvc/snapfmt" {
			continue
		}
		for _, i := range p.Imports {
			if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") {
				t.Errorf("snapfmt imports %s", i)
			}
		}
	}
}

func TestDriversNeverImportEachOther(t *testing.T) {
	drivers := []string{"hostagent/internal/vmm/qemu", "hostagent/internal/vmm/firecracker"}
	for _, p := range packages(t) {
		for _, d := range drivers {
			if p.ImportPath != ours+d {
				continue
			}
			for _, other := range drivers {
				for _, i := range p.Imports {
					if other != d && i == ours+other {
						t.Errorf("%s imports %s", p.ImportPath, i)
					}
				}
			}
		}
	}
}
