package pager

import "context"

// Source is the memory of one snapshot, to be read. It is safe for concurrent use.
type Source interface {
	// Size is a multiple of PageSize.
	Size() int64
	// ReadAt fills all of p (off and len multiples of 4096 within Size) and tells where the bytes came from: "local", "peer",
	// "registry", "zero".
	ReadAt(ctx context.Context, p []byte, off int64) (from string, err error)
	// Run tells how far the run that off lies in goes on (>0 unless off==Size) and whether it is known to be all zeros.
	Run(off int64) (length int64, zero bool)
}

// Local is what a Source may tell besides. The pager reads what is local in the thread that serves the fault, which is
// quicker; everything else is left to goroutines, so that it delays nobody else.
type Local interface {
	// Local tells whether ReadAt of that range would answer in well under a millisecond, waiting for no network.
	Local(off, length int64) bool
}

func isLocal(s Source, off, length int64) bool {
	l, ok := s.(Local)
	return ok && l.Local(off, length)
}

// zeros is a source of nothing but zeros.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (z zeros) ReadAt(_ context.Context, p []byte, _ int64) (string, error) {
	clear(p)
	return "zero", nil
}

func (z zeros) Run(off int64) (int64, bool) { return int64(z) - off, true }
