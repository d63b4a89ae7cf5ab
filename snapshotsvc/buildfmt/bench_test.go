package buildfmt

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
)

// likeMemory makes bytes that compress as a guest's memory does, to a third or so.
func likeMemory(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 512)
	for i := range words {
		words[i] = make([]byte, 8+r.IntN(24))
		for j := range words[i] {
			words[i][j] = byte(r.Uint32())
		}
	}
	b := make([]byte, 0, n+64)
	for len(b) < n {
		b = append(b, words[r.IntN(len(words))]...)
		b = append(b, byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()))
	}
	return b[:n]
}

func BenchmarkWriter(b *testing.B) {
	data := likeMemory(32<<20, 1)
	for _, workers := range []int{1, 2} {
		b.Run(map[int]string{1: "one", 2: "two"}[workers], func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				w, err := NewWriter(io.Discard, Options{Kind: Memory, Workers: workers})
				if err != nil {
					b.Fatal(err)
				}
				w.Write(data)
				info, err := w.Close()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(info.Stored)/float64(info.Size), "stored/size")
			}
		})
	}
}

func BenchmarkReadFrame(b *testing.B) {
	data := likeMemory(32<<20, 1)
	var out bytes.Buffer
	w, _ := NewWriter(&out, Options{Kind: Memory, Workers: 2})
	w.Write(data)
	info, err := w.Close()
	if err != nil {
		b.Fatal(err)
	}
	r, err := Open(context.Background(), File(bytes.NewReader(out.Bytes())), info.Stored, info.ID)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, r.FrameSize())
	b.SetBytes(r.FrameSize())
	i := 0
	for b.Loop() {
		if _, err := r.ReadFrame(context.Background(), i%r.Frames(), p); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
