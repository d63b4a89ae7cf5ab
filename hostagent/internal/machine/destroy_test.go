package machine

import (
	"errors"
	"testing"
)

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

func TestAPauseASnapshotOrAForkThatComesLateDoesNothingToALaterLife(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	ctx := t.Context()
	if _, err := h.Start(ctx, spec("sb_1"), "rst_1"); err != nil {
		t.Fatal(err)
	}
	m, err := h.FindLife("sb_1", "rst_1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Pause(ctx, "snap_1"); err != nil {
		t.Fatal(err)
	}
	if again, err := h.FindLife("sb_1", "rst_1"); err != nil || again != m {
		t.Fatalf("the pause repeated meets %v", err)
	}
	resumed := spec("sb_1")
	resumed.Image, resumed.SnapshotID, resumed.Kind, resumed.ColdBoot = "", "snap_1", Resume, false
	if _, err := h.Start(ctx, resumed, "rst_2"); err != nil {
		t.Fatal(err)
	}
	var other *OtherLifeError
	if _, err := h.FindLife("sb_1", "rst_1"); !errors.As(err, &other) || other.Here != "rst_2" || other.State != Running {
		t.Errorf("a late command meets %v", err)
	}
	// One that had found its life before it ended finds nothing to do in it.
	var illegal *IllegalError
	if _, _, err := m.Pause(ctx, "snap_2"); !errors.As(err, &illegal) {
		t.Errorf("late by a moment: %v", err)
	}
	for _, named := range []string{"", "rst_2"} {
		if now, err := h.FindLife("sb_1", named); err != nil || now.Status().State != Running {
			t.Errorf("life %q: %v", named, err)
		}
	}
}
