package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart.
var (
	// ErrInUse: a draft or a session of that name is there already.
	ErrInUse = errors.New("in use")
	// ErrClosed: the cache, image, session or draft was closed.
	ErrClosed = errors.New("closed")
)

// Config is what a cache is told. Zero values mean the defaults.
type Config struct {
	// Dir is a directory on tmpfs that the cache has for itself.
	Dir string
	// LimitBytes is how much the files may take before images that nobody uses go, the longest unused first; 0: no limit. It is no limit on
	// images that are in use.
	LimitBytes int64
	Log        *slog.Logger

	// Around is how much a fault brings in, in bytes: a power of two, a page to 64 KiB, which is the default. Faults one
	// after the other bring in up to 512 KiB, unless Around is a page.
	Around int64
	// Workers is how many threads wait for faults; by default one for every four processors, 1 to 8.
	Workers int
	// Fills is how many fills that are not local may be under way (256).
	Fills int
	// ReadTime bounds one read of a source (1 min). A source that takes longer fails the VM.
	ReadTime time.Duration
}

func (c *Config) complete() error {
	if c.Dir == "" || !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("pager: Dir must be an absolute path, got %q", c.Dir)
	}
	if c.Around == 0 {
		c.Around = blockSize
	}
	if c.Around < PageSize || c.Around > blockSize || c.Around&(c.Around-1) != 0 {
		return fmt.Errorf("pager: Around must be a power of two from %d to %d, got %d", PageSize, blockSize, c.Around)
	}
	if c.Workers <= 0 {
		c.Workers = min(max(runtime.NumCPU()/4, 1), 8)
	}
	if c.Fills <= 0 {
		c.Fills = 256
	}
	if c.ReadTime <= 0 {
		c.ReadTime = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Cache has the images of one host and serves their sessions. It is safe for concurrent use.
type Cache struct {
	conf   Config
	log    *slog.Logger
	poller *poller
	pool   *pool
	tally  tally
	bytes  atomic.Int64 // what all files take
	idle   atomic.Int64 // files that nobody uses
	evict  atomic.Bool  // an eviction is under way
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	files    map[string]*cachedFile // by key
	sessions map[string]*Session    // by id
	clock    int64                  // counts uses, for the order of eviction
}

// cachedFile is a page file in the cache's list. The cache's mutex guards it.
type cachedFile struct {
	*pageFile
	refs    int
	used    int64 // the clock's time of last use
	dropped bool  // goes with the last use
	opened  bool  // by this process
}

const (
	imageSuffix  = ".mem"
	draftSuffix  = ".draft"
	recordSuffix = ".session"
)

// NewCache takes over the directory: files of a former process are kept for Open to find, until Sweep; its drafts go.
func NewCache(conf Config) (*Cache, error) {
	if err := conf.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(conf.Dir, 0o700); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(conf.Dir, &st); err != nil {
		return nil, fmt.Errorf("pager: Dir %s: %w", conf.Dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("pager: Dir must be on tmpfs, and %s is not", conf.Dir)
	}
	c := &Cache{
		conf: conf, log: conf.Log, files: map[string]*cachedFile{}, sessions: map[string]*Session{}, pool: newPool(conf.Fills),
	}
	if err := c.inherit(); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	c.poller, err = newPoller(conf.Workers)
	return c, err
}

// inherit lists the files of a former process.
func (c *Cache) inherit() error {
	entries, err := os.ReadDir(c.conf.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(c.conf.Dir, e.Name())
		if strings.HasSuffix(e.Name(), draftSuffix) {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		key, isImage := strings.CutSuffix(e.Name(), imageSuffix)
		info, err := e.Info()
		if !isImage || err != nil {
			continue
		}
		f, err := openPageFile(path, key, info.Size(), c.conf.Around, &c.bytes)
		if err != nil {
			return err
		}
		c.files[key] = &cachedFile{pageFile: f}
		c.idle.Add(1)
	}
	return nil
}

var validKey = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func checkKey(what, key string) error {
	if !validKey.MatchString(key) {
		return fmt.Errorf("pager: %s must be 1 to 128 letters, digits, '.', '_' or '-', got %q", what, key)
	}
	return nil
}

// Open opens the image of a snapshot, whose id is the key, and begins to bring in its working set (offsets of blocks, as
// Session.WorkingSet lists them). The image has to be released; src has to be readable until then.
func (c *Cache) Open(key string, src Source, workingSet []int64) (*Image, error) {
	if err := checkKey("key", key); err != nil {
		return nil, err
	}
	if src.Size() <= 0 || src.Size()%PageSize != 0 {
		return nil, fmt.Errorf("pager: the size of %s must be a positive multiple of %d, got %d", key, PageSize, src.Size())
	}
	f, err := c.hold(key, src.Size())
	if err != nil {
		return nil, err
	}
	img := newImage(c, f, src)
	if len(workingSet) > 0 {
		img.prefetch(workingSet)
	}
	return img, nil
}

// Zeros opens an image of nothing but zeros: the memory of a VM that boots.
func (c *Cache) Zeros(size int64) (*Image, error) {
	return c.Open(fmt.Sprintf("zeros-%d", size), zeros(size), nil)
}

// hold finds or makes the file of an image and counts a use of it.
func (c *Cache) hold(key string, size int64) (*cachedFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	f := c.files[key]
	if f != nil && f.opened && f.strayed() {
		c.log.Warn("page-cache file has pages that the pager did not put there; it is given to no further VM", "key", key)
		c.tally.strayed.Add(1)
		c.forget(f)
		f = nil
	}
	switch {
	case f == nil:
		p, err := openPageFile(filepath.Join(c.conf.Dir, key+imageSuffix), key, size, c.conf.Around, &c.bytes)
		if err != nil {
			return nil, err
		}
		f = &cachedFile{pageFile: p}
		c.files[key] = f
	case f.size != size:
		return nil, fmt.Errorf("pager: image %s is of %d bytes, not %d", key, f.size, size)
	case f.refs == 0:
		c.idle.Add(-1)
	}
	f.refs++
	f.opened = true
	return f, nil
}

// letGo counts a use less.
func (c *Cache) letGo(f *cachedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.refs--
	c.clock++
	f.used = c.clock
	switch {
	case f.refs > 0:
	case f.dropped:
		f.close()
	default:
		c.idle.Add(1)
	}
	c.makeRoom()
}

// forget takes a file out of the list. It goes at once or when nobody uses it any more. mu is held.
func (c *Cache) forget(f *cachedFile) {
	delete(c.files, f.key)
	if err := os.Remove(f.path); err != nil {
		c.log.Error("cannot remove a page-cache file", "key", f.key, "err", err)
	}
	f.dropped = true
	if f.refs == 0 {
		c.idle.Add(-1)
		f.close()
	}
}

// Drop forgets an image: at once, or when it is released. One that is not here is no error.
func (c *Cache) Drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[key]; f != nil {
		c.forget(f)
	}
}

// Sweep removes what a former process left and nobody has taken over since: files that have not been opened, records of sessions that are
// not here. It is called once everything was taken back.
func (c *Cache) Sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		if !f.opened {
			c.forget(f)
		}
	}
	records, _ := filepath.Glob(filepath.Join(c.conf.Dir, "*"+recordSuffix))
	for _, path := range records {
		if c.sessions[strings.TrimSuffix(filepath.Base(path), recordSuffix)] == nil {
			os.Remove(path)
		}
	}
}

// makeRoom begins an eviction if there is need and something to evict.
func (c *Cache) makeRoom() {
	if c.conf.LimitBytes <= 0 || c.bytes.Load() <= c.conf.LimitBytes || c.idle.Load() == 0 || c.evict.Swap(true) {
		return
	}
	c.pool.submit(func() {
		defer c.evict.Store(false)
		for c.evictOne() {
		}
	})
}

// evictOne removes the file that has not been used for longest, if there is need; it tells whether it did.
func (c *Cache) evictOne() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes.Load() <= c.conf.LimitBytes {
		return false
	}
	var oldest *cachedFile
	for _, f := range c.files {
		if f.refs == 0 && (oldest == nil || f.used < oldest.used) {
			oldest = f
		}
	}
	if oldest == nil {
		return false
	}
	c.log.Info("evicted an image from the page cache", "key", oldest.key, "bytes", oldest.pages.Load()*PageSize)
	c.tally.evictions.Add(1)
	c.forget(oldest)
	return true
}

// Close ends all sessions on the pager's side and lets go of the files. VMs go on and wait at their next fault; files, records and
// sockets stay for the next process. Images must not be used any more.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var open []*Session
	for _, s := range c.sessions {
		open = append(open, s)
	}
	c.mu.Unlock()
	var errs []error
	for _, s := range open {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		errs = append(errs, s.leave(ctx))
		cancel()
	}
	c.poller.close()
	c.cancel() // prefetching
	c.pool.wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		f.close()
	}
	return errors.Join(errs...)
}
