package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BlockSize is the unit of the overlay, bytes.
const BlockSize = 4096

// What a layer's map says of a block.
const (
	below  byte = 0 // not in this layer
	inData byte = 1 // in the layer's data
	zeros  byte = 2 // zero; takes no space
)

const (
	dataSuffix = ".data"
	mapSuffix  = ".map"
)

// layer is one generation of writes. Only the top layer and one that is merged into are written.
type layer struct {
	number int
	path   string // without suffix
	data   *os.File
	// state is the map, mapped shared. A byte is written under Disk.locks (top) or by the merger alone (others), after
	// the data that it tells of, and read without a lock: a reader that races with a writer gets the block of before or after.
	state []byte

	refs int // guarded by Disk.mu: stacks in use that have this layer
	pins int // guarded by Disk.mu: Frozens of which this is the highest layer
}

func layerPath(dir, id string, number int) string {
	return filepath.Join(dir, id+"."+strconv.Itoa(number))
}

// createLayer makes an empty layer for a disk of size bytes. Data comes first: a map without data would be damage.
func createLayer(dir, id string, number int, size int64) (_ *layer, err error) {
	l := &layer{number: number, path: layerPath(dir, id, number)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(), l.remove())
		}
	}()
	if l.data, err = os.OpenFile(l.path+dataSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	if err := l.data.Truncate(size); err != nil {
		return nil, err
	}
	return l, l.mapState(os.O_CREATE|os.O_TRUNC, size)
}

// openLayer opens a layer that a former agent has made.
func openLayer(dir, id string, number int, size int64) (_ *layer, err error) {
	l := &layer{number: number, path: layerPath(dir, id, number)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", l.path, err), l.close())
		}
	}()
	if l.data, err = os.OpenFile(l.path+dataSuffix, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	st, err := l.data.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != size {
		return nil, fmt.Errorf("data has %d bytes and not %d", st.Size(), size)
	}
	if err := l.mapState(0, size); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(l.state, func(b byte) bool { return b > zeros }); i >= 0 {
		return nil, fmt.Errorf("the map says %d of block %d; only 0 to 2 mean anything", l.state[i], i)
	}
	return l, nil
}

// mapState maps the map file, and reserves what space it lacks: a former agent may have been killed while it did so.
func (l *layer) mapState(flags int, size int64) error {
	f, err := os.OpenFile(l.path+mapSuffix, os.O_RDWR|flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := size / BlockSize
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > blocks {
		return fmt.Errorf("the map has %d blocks and not %d", st.Size(), blocks)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, blocks); err != nil {
		return fmt.Errorf("reserving space for the map: %w", err)
	}
	l.state, err = unix.Mmap(int(f.Fd()), 0, int(blocks), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

// close frees what the process has of the layer; its files stay.
func (l *layer) close() error {
	var errs []error
	if l.state != nil {
		errs = append(errs, unix.Munmap(l.state))
		l.state = nil
	}
	if l.data != nil {
		errs = append(errs, l.data.Close())
		l.data = nil
	}
	return errors.Join(errs...)
}

// remove removes the layer's files, which may be open. The map goes first: what has no map is no layer.
func (l *layer) remove() error {
	return errors.Join(removeIfThere(l.path+mapSuffix), removeIfThere(l.path+dataSuffix))
}

// fill writes one value for blocks [from, to).
func (l *layer) fill(from, to int64, v byte) {
	s := l.state[from:to]
	for i := range s {
		s[i] = v
	}
}

// setZero makes blocks [from, to) zero and gives their space back. A crash in between leaves space taken, which a write uses again.
func (l *layer) setZero(from, to int64) error {
	had := slices.Contains(l.state[from:to], inData)
	l.fill(from, to, zeros)
	if !had {
		return nil
	}
	return unix.Fallocate(int(l.data.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from*BlockSize, (to-from)*BlockSize)
}

// bytes is the space that the layer takes.
func (l *layer) bytes() (n int64, err error) {
	for _, suffix := range []string{dataSuffix, mapSuffix} {
		var st unix.Stat_t
		if err := unix.Stat(l.path+suffix, &st); err != nil {
			return 0, fmt.Errorf("%s: %w", l.path+suffix, err)
		}
		n += st.Blocks * 512
	}
	return n, nil
}

// overlayFile tells the id and the layer's number that a file name stands for.
func overlayFile(name string) (id string, number int, suffix string, ok bool) {
	suffix = filepath.Ext(name)
	if suffix != dataSuffix && suffix != mapSuffix {
		return "", 0, "", false
	}
	id, digits, ok := strings.Cut(strings.TrimSuffix(name, suffix), ".")
	if !ok || !validID.MatchString(id) {
		return "", 0, "", false
	}
	number, err := strconv.Atoi(digits)
	return id, number, suffix, err == nil && number >= 0 && strconv.Itoa(number) == digits
}

func removeIfThere(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
