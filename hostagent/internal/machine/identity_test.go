package machine

import "testing"

func TestASandboxThatIsBootedFromItsSavedDiskIsTheSameAndACloneIsNot(t *testing.T) {
	w := newWorld()
	h := w.newHost(t)
	first := start(t, h, spec("sb_1"))
	was := first.Receipt().Attestation
	if _, _, err := first.Pause(t.Context(), "snap_1"); err != nil {
		t.Fatal(err)
	}
	saved := func(id string, kind Kind, policy RestorePolicy) Receipt {
		s := spec(id)
		s.Image, s.SnapshotID, s.ColdBoot, s.Kind, s.Policy = "", "snap_1", false, kind, policy
		started, err := h.Start(t.Context(), s, newID("rst_"))
		if err != nil {
			t.Fatal(err)
		}
		return started.Receipt
	}
	resumed := saved("sb_1", Resume, DiskOnly)
	if a := resumed.Attestation; resumed.Kind != DiskBoot || a.MachineID != was.MachineID || a.Hostname != was.Hostname || len(a.MachineID) != 32 {
		t.Errorf("it was %+v, by a %s it is %+v", was, resumed.Kind, a)
	}
	for _, policy := range []RestorePolicy{DiskOnly, MemoryRequired} {
		clone := saved("sb_2", Spawn, policy)
		if a := clone.Attestation; a.MachineID == was.MachineID || a.Hostname == was.Hostname || len(a.MachineID) != 32 {
			t.Errorf("by a %s a clone of %+v is %+v", clone.Kind, was, a)
		}
		m, err := h.Find("sb_2")
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Destroy(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
}
