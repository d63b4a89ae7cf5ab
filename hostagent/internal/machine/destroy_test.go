package machine

import "testing"

func TestADestroyEndsTheLifeThatItNamesAndNoOther(t *testing.T) {
	w := newWorld()
	dir := t.TempDir()
	h := w.host(t, dir)
	ctx := t.Context()
	if _, err := h.Start(ctx, spec("sb_1"), "rst_1"); err != nil {
		t.Fatal(err)
	}
	m, err := h.Find("sb_1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Pause(ctx, "snap_1"); err != nil {
		t.Fatal(err)
	}
	resumed := spec("sb_1")
	resumed.Image, resumed.SnapshotID, resumed.Kind, resumed.ColdBoot = "", "snap_1", Resume, false
	// One that fails leaves what was there, and so does undoing it.
	w.failAt("restore", ErrVMDied)
	if _, err := h.Start(ctx, resumed, "rst_2"); err == nil {
		t.Fatal("it was started")
	}
	if err := h.Destroy(ctx, "sb_1", "rst_2"); err != nil {
		t.Fatal(err)
	}
	if m, err := h.Find("sb_1"); err != nil || m.Status().State != Paused || m.Status().RestoreID != "rst_1" {
		t.Fatalf("after a start that failed it is %v, %v", m.Status(), err)
	}
	w.failAt("restore", nil)
	if _, err := h.Start(ctx, resumed, "rst_3"); err != nil {
		t.Fatal(err)
	}
	for _, late := range []string{"rst_1", "rst_2"} {
		if err := h.Destroy(ctx, "sb_1", late); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := h.Find("sb_1"); err != nil || m.Status().State != Running || m.Status().RestoreID != "rst_3" {
		t.Fatalf("after late commands: %v", err)
	}
	if err := h.Destroy(ctx, "sb_1", "rst_3"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Find("sb_1"); err == nil {
		t.Error("it is here still")
	}
	if err := h.Destroy(ctx, "sb_1", "rst_3"); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := h.Close(ctx, true); err != nil {
		t.Fatal(err)
	}
	if left := w.holdings(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}
