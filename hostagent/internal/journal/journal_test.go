package journal

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

type note struct {
	State string `json:"state"`
	PID   int    `json:"pid"`
}

func open(t *testing.T, dir string) *Journal[note] {
	t.Helper()
	j, err := Open[note](dir)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestRecordsSurviveTheirWriter(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	for _, err := range []error{j.Put("sb_1", note{"RUNNING", 7}), j.Put("sb_2", note{"PAUSED", 0}), j.Put("sb_1", note{"RUNNING", 8}), j.Remove("sb_3")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	list, err := open(t, dir).Load()
	if err != nil || len(list) != 2 {
		t.Fatalf("found %v, %v", list, err)
	}
	if e := list[0]; e.ID != "sb_1" || e.Record.PID != 8 || !e.SameBoot || e.Err != nil {
		t.Errorf("found %+v", e)
	}
	if err := j.Remove("sb_1"); err != nil {
		t.Fatal(err)
	}
	if list, _ = j.Load(); len(list) != 1 || list[0].ID != "sb_2" {
		t.Errorf("after removal: %+v", list)
	}
}

func TestADamagedRecordHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	if err := j.Put("sb_1", note{"RUNNING", 7}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sb_0.json": `{"version":1,"id":"sb_0","boot`, "sb_2.json": `{"version":9,"id":"sb_2","record":{}}`,
		"sb_3.json": `{"version":1,"id":"sb_1","record":{}}`, "sb_4.json": `{"version":1,"id":"sb_4"}`, "sb_5.tmp": "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "sb_5.tmp")); err == nil {
		t.Error("an interrupted write is still there")
	}
	list, err := j.Load()
	if err != nil || len(list) != 5 {
		t.Fatalf("found %+v, %v", list, err)
	}
	for i, want := range []string{"damaged", "", "version 9", "sb_1", "empty"} {
		e := list[i]
		if (e.Err == nil) != (want == "") || e.Err != nil && !strings.Contains(e.Err.Error(), want) {
			t.Errorf("%s: %v, want %q", e.ID, e.Err, want)
		}
	}
}

func TestAnotherBootIsTold(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	j.bootID = "another"
	if err := j.Put("sb_1", note{}); err != nil {
		t.Fatal(err)
	}
	list, err := open(t, dir).Load()
	if err != nil || len(list) != 1 || list[0].SameBoot {
		t.Fatalf("found %+v, %v", list, err)
	}
}

func TestAnIDCannotLeaveTheDirectory(t *testing.T) {
	j := open(t, t.TempDir())
	for _, id := range []string{"", "../x", "a/b", ".hidden", strings.Repeat("a", 200)} {
		if j.Put(id, note{}) == nil || j.Remove(id) == nil {
			t.Errorf("id %q was taken", id)
		}
	}
}

func TestWritersOfOneIDLeaveOneWholeRecord(t *testing.T) {
	j := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if err := j.Put("sb_1", note{strings.Repeat("x", i*100), i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	list, err := j.Load()
	if err != nil || len(list) != 1 || list[0].Err != nil || len(list[0].Record.State) != list[0].Record.PID*100 {
		t.Fatalf("found %+v, %v", list, err)
	}
	if len(j.locks) != 0 {
		t.Errorf("%d locks are left", len(j.locks))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"sb_1","boot_id":"b","record":{"state":"RUNNING","pid":7}}`))
	f.Add([]byte(`{"version":1,"id":"sb_1"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, _, err := decode[note]("sb_1", "b", data); err != nil && r != (note{}) {
			t.Errorf("an error came with a record %+v", r)
		}
	})
}
