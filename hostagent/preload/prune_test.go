package preload_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coveyhq/covey/hostagent/preload"
)

func TestFormerVersionsAreRemovedButTheLatest(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		path := filepath.Join(dir, fmt.Sprintf("covey-preload-%d.so", i))
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-time.Duration(i+1) * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	object, err := preload.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 3 {
		t.Errorf("left: %v", left)
	}
	for _, path := range []string{object, filepath.Join(dir, "covey-preload-0.so"), filepath.Join(dir, "covey-preload-1.so")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
