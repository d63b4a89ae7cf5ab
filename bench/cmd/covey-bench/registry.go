package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
)

const (
	// registryRuns bounds the runs: each makes a stock image's snapshot of a size of its own, so that the other host has nothing of it.
	registryRuns = 5
	// registryLoadMB is what a program in the template holds in memory, and as much on disk, MiB: random, so that it does not compress.
	registryLoadMB = 64
	// registryReaders are the cold hosts whose reading is imitated.
	registryReaders = 8
)

// benchRegistry moves snapshots between two hosts. A template is made on host-a and spawned on host-b, which has nothing of it (cold), and
// again (warm). Two templates are taken: of the stock image as it booted, and of one in which a program has loaded data, as templates are
// made for. Uploads and reads of the registry are held against writing and reading the same bytes on the local disk.
func benchRegistry(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, err := e.start(ctx, 2)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	var last string
	for _, kind := range []struct {
		name, suffix, load string
	}{
		{"loaded", "", fmt.Sprintf(loadData, registryLoadMB, registryLoadMB)},
		{"plain", "_plain", "true"},
	} {
		var cold, warm, share, missing, upload series
		for i := range min(e.runs, registryRuns) {
			// Sizes apart: what one run has fetched of the image's memory is nothing of the next one's.
			r, err := e.coldAndWarm(ctx, fmt.Sprintf("%s-%d", kind.name, i), uint32(384+16*i+8*len(kind.suffix)), kind.load)
			if err != nil {
				return nil, err
			}
			missing = append(missing, r.moved/r.missing)
			cold, share, upload = append(cold, r.cold), append(share, r.moved/r.stored), append(upload, r.upload)
			warm = append(warm, r.warm...)
			last = r.template
			fmt.Printf("  %s: %.1f MB stored; before the first exec %.1f MB moved: %.1f %%, or %.1f %% of what the host had not\n",
				r.template, r.stored/1e6, r.moved/1e6, 100*r.moved/r.stored, 100*r.moved/r.missing)
		}
		cold.row(kind.name+": cold host, to first exec", "ms")
		warm.row(kind.name+": warm host, to first exec", "ms")
		m["registry_cold"+kind.suffix+"_ms"], m["registry_warm"+kind.suffix+"_ms"] = cold.median(), warm.median()
		m["registry_cold_share"+kind.suffix] = share.median()
		m["registry_cold_share_of_missing"+kind.suffix] = missing.median()
		m["registry_cold_over_warm"+kind.suffix] = cold.median() / warm.median()
		if kind.suffix == "" {
			upload.row("upload into the registry", "MB/s")
			m["registry_upload_mb_per_s"] = upload.median()
			if err := e.registryReads(ctx, last, m); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// loadData makes a program that holds MiB of random data in memory until it is killed, and a file of MiB.
const loadData = `dd if=/dev/urandom of=/srv/data bs=1M count=%d 2>/dev/null; sync; mkdir -p /run/held; dd if=/dev/urandom of=/run/held/data bs=1M count=%d 2>/dev/null; ` +
	`echo 3 >/proc/sys/vm/drop_caches; sync`

// moving is what one run gave.
type moving struct {
	template string
	// stored and moved are bytes: of all that the snapshot names, and what came to the cold host before the first exec.
	stored, moved float64
	// missing is stored without what the cold host had already: the stock image's disk, which every host has.
	missing float64
	// cold and warm are ms from the request to the first exec answered.
	cold float64
	warm series
	// upload is MB/s.
	upload float64
}

func (e *env) coldAndWarm(ctx context.Context, name string, memoryMB uint32, load string) (r moving, err error) {
	r.template = name
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: "base", MemoryMb: memoryMB, HostLabels: map[string]string{"host": "host-a"}})
	if err != nil {
		return r, err
	}
	if _, err := e.exec(ctx, sb.GetId(), load); err != nil {
		return r, err
	}
	if err := e.snapshot(ctx, sb.GetId(), name); err != nil {
		return r, err
	}
	began := time.Now()
	snap, err := e.durable(ctx, name)
	if err != nil {
		return r, err
	}
	r.stored = float64(snap.GetUniqueBytes() + snap.GetSharedBytes())
	if r.missing, err = e.missing(ctx, name, "host-b"); err != nil {
		return r, err
	}
	r.upload = float64(snap.GetUniqueBytes()) / 1e6 / time.Since(began).Seconds()
	if err := e.delete(ctx, sb.GetId()); err != nil {
		return r, err
	}
	before, err := e.fetched(ctx, "host-b")
	if err != nil {
		return r, err
	}
	for i := range 4 {
		took, id, err := e.spawnOn(ctx, name, "host-b")
		if err != nil {
			return r, err
		}
		if i == 0 {
			after, err := e.fetched(ctx, "host-b")
			if err != nil {
				return r, err
			}
			r.cold, r.moved = took, after-before
		} else {
			r.warm = append(r.warm, took)
		}
		if err := e.delete(ctx, id); err != nil {
			return r, err
		}
	}
	return r, nil
}

// missing is the size of the builds of a template that a host does not have whole, bytes.
func (e *env) missing(ctx context.Context, template, host string) (float64, error) {
	conn, err := e.registry(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	res, err := snapshotv1.NewRegistryServiceClient(conn).GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: template, TenantId: "default"})
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, b := range res.GetManifest().GetBuilds() {
		if _, err := os.Stat(filepath.Join(e.m.Dir, host, "snapshots", "builds", b.GetId())); errors.Is(err, os.ErrNotExist) {
			sum += float64(b.GetData().GetSizeBytes())
		} else if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

func (e *env) durable(ctx context.Context, name string) (*snapshotv1.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		res, err := e.snapshots.GetSnapshot(ctx, &snapshotv1.GetSnapshotRequest{SnapshotId: name})
		if err != nil {
			return nil, err
		}
		if res.GetSnapshot().GetState() == snapshotv1.SnapshotState_SNAPSHOT_STATE_DURABLE {
			return res.GetSnapshot(), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not become durable: %w", name, ctx.Err())
		}
	}
}

// spawnOn is the time from the request to make a sandbox on a host until a command in it was answered, ms.
func (e *env) spawnOn(ctx context.Context, template, host string) (float64, string, error) {
	began := time.Now()
	sb, err := e.create(ctx, &sandboxv1.CreateSandboxRequest{Template: template, HostLabels: map[string]string{"host": host}})
	if err != nil {
		return 0, "", err
	}
	_, err = e.exec(ctx, sb.GetId(), "true")
	return ms(time.Since(began)), sb.GetId(), err
}

// fetched is what a host has fetched from peers and the registry since its agent began, bytes, by its own metrics.
func (e *env) fetched(ctx context.Context, host string) (float64, error) {
	addr, err := metricsOf(e.m.Process("hostagentd-" + host).Log)
	if err != nil {
		return 0, err
	}
	body, err := fetchURL(ctx, "http://"+addr+"/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "covey_transfer_fetch_bytes_total") {
			fields := strings.Fields(line)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
	}
	return sum, nil
}

// metricsOf finds in a daemon's log where it serves its metrics now.
func metricsOf(log string) (addr string, err error) {
	f, err := os.Open(log)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct{ Msg, Metrics string }
		if json.Unmarshal(s.Bytes(), &line) == nil && line.Msg == "serving" {
			addr = line.Metrics
		}
	}
	if addr == "" {
		err = fmt.Errorf("%s does not say where its metrics are", log)
	}
	return addr, err
}

func fetchURL(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, res.Status)
	}
	return io.ReadAll(res.Body)
}

// registryReads reads all builds of a template from the registry: one reader, and several at once, each with a connection of its own as hosts have;
// and the same files from the disk. Before each reading the files are thrown out of the page cache, so that all begin at the disk.
func (e *env) registryReads(ctx context.Context, template string, m map[string]float64) error {
	var readers []snapshotv1.RegistryServiceClient
	for range registryReaders {
		conn, err := e.registry(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		readers = append(readers, snapshotv1.NewRegistryServiceClient(conn))
	}
	man, err := readers[0].GetManifest(ctx, &snapshotv1.GetManifestRequest{Snapshot: template, TenantId: "default"})
	if err != nil {
		return err
	}
	var keys []string
	var size int64
	for _, b := range man.GetManifest().GetBuilds() {
		keys, size = append(keys, b.GetData().GetKey()), size+b.GetData().GetSizeBytes()
	}
	files, err := e.objectFiles(keys)
	if err != nil {
		return err
	}
	var one, many, read, write series
	rate := func(n int, took time.Duration) float64 { return float64(n) * float64(size) / 1e6 / took.Seconds() }
	for range 3 {
		for _, n := range []int{1, registryReaders} {
			took, err := readAtOnce(ctx, readers[:n], keys, files)
			if err != nil {
				return err
			}
			if n == 1 {
				one = append(one, rate(n, took))
			} else {
				many = append(many, rate(n, took))
			}
		}
		r, err := readFiles(files)
		if err != nil {
			return err
		}
		w, err := writeAnew(e.m.Dir, files)
		if err != nil {
			return err
		}
		read, write = append(read, rate(1, r)), append(write, rate(1, w))
	}
	one.row("registry, 1 reader", "MB/s")
	many.row(fmt.Sprintf("registry, %d readers together", registryReaders), "MB/s")
	read.row("the same files from the local disk", "MB/s")
	write.row("written to it and synced", "MB/s")
	m["registry_fetch_mb_per_s"], m["registry_disk_read_mb_per_s"], m["registry_disk_write_mb_per_s"] = one.median(), read.median(), write.median()
	m["registry_fetch_over_disk"] = one.median() / read.median()
	m["registry_upload_over_disk"] = m["registry_upload_mb_per_s"] / write.median()
	m["registry_8_readers_mb_per_s"] = many.median()
	m["registry_8_readers_over_one"] = many.median() / one.median()
	fmt.Printf("  %-36s %9.2f of the disk's; upload %.2f of the disk's; 8 readers get %.2f times what one gets\n", "registry: fetch",
		m["registry_fetch_over_disk"], m["registry_upload_over_disk"], m["registry_8_readers_over_one"])
	return nil
}

// registry connects to the mesh's snapshotd, found in Consul.
func (e *env) registry(ctx context.Context) (*grpc.ClientConn, error) {
	body, err := fetchURL(ctx, "http://"+e.m.ConsulAddr+"/v1/health/service/covey-snapshot?passing=1")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Service struct {
			Address string
			Port    int
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("no healthy covey-snapshot in Consul")
	}
	addr := net.JoinHostPort(list[0].Service.Address, strconv.Itoa(list[0].Service.Port))
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// readAtOnce has all readers read all objects and returns how long the last one took. The files are those that the registry reads.
func readAtOnce(ctx context.Context, readers []snapshotv1.RegistryServiceClient, keys, files []string) (time.Duration, error) {
	if err := forget(files); err != nil {
		return 0, err
	}
	began := time.Now()
	errs := make([]error, len(readers))
	var wg sync.WaitGroup
	for i, c := range readers {
		wg.Go(func() {
			for _, k := range keys {
				if errs[i] = readObject(ctx, c, k); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}

func readObject(ctx context.Context, c snapshotv1.RegistryServiceClient, key string) error {
	st, err := c.ReadObject(ctx, &snapshotv1.ReadObjectRequest{Key: key})
	if err != nil {
		return err
	}
	for {
		if _, err := st.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
