package disk

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkNBD runs the same requests of qemu-img bench against a disk and against qemu-nbd on a plain file, as the baseline.
func BenchmarkNBD(b *testing.B) {
	const size = 256 << 20
	dir := b.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(plain, size); err != nil {
		b.Fatal(err)
	}
	baseline := filepath.Join(dir, "baseline.sock")
	server := exec.Command("qemu-nbd", "-k", baseline, "-t", "-f", "raw", "--cache=writeback", "--discard=unmap", plain)
	if err := server.Start(); err != nil {
		b.Skip(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	s, err := NewStore(filepath.Join(dir, "overlay"), slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	ours := filepath.Join(dir, "ours.sock")
	d, err := s.Create(b.Context(), "sb_1", nil, size, ours, os.Getuid())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Discard(b.Context())
	for _, c := range []struct{ name, flags string }{
		{"write-64k-qd1", "-w -s 65536 -S 65536 -d 1 -c 4096"}, {"read-64k-qd1", "-s 65536 -S 65536 -d 1 -c 4096"},
		{"write-4k-qd1", "-w -s 4096 -S 4096 -d 1 -c 20000"}, {"read-4k-qd1", "-s 4096 -S 4096 -d 1 -c 20000"},
		{"read-4k-qd16", "-s 4096 -S 4096 -d 16 -c 40000"}, {"write-1m-qd4", "-w -s 1048576 -S 1048576 -d 4 -c 512"},
		{"read-1m-qd4", "-s 1048576 -S 1048576 -d 4 -c 512"},
	} {
		for _, socket := range []string{ours, baseline} {
			b.Run(c.name+"/"+strings.TrimSuffix(filepath.Base(socket), ".sock"), func(b *testing.B) {
				for b.Loop() {
					if out, err := exec.Command("qemu-img", append(append([]string{"bench", "-f", "raw"}, strings.Fields(c.flags)...), uri(socket))...).CombinedOutput(); err != nil {
						b.Fatalf("%v\n%s", err, out)
					}
				}
			})
		}
	}
}

// BenchmarkFreeze tells how long a VM stands still for its disk, after it wrote much.
func BenchmarkFreeze(b *testing.B) {
	s, err := NewStore(filepath.Join(b.TempDir(), "overlay"), slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	d, err := s.Create(b.Context(), "sb_1", nil, 4<<30, filepath.Join(b.TempDir(), "disk.sock"), os.Getuid())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Discard(b.Context())
	p := make([]byte, 64<<10)
	for b.Loop() {
		b.StopTimer()
		for range 100 {
			if err := d.WriteAt(b.Context(), p, rand.Int64N(4<<30-int64(len(p)))&^(BlockSize-1)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		f, err := d.Freeze(b.Context())
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Release(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
