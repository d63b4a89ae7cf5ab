package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheLocalMeshsKeyGoesToNoOtherMachine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "api-key")
	if err := os.WriteFile(file, []byte("cvy_local\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"http://127.0.0.1:7070": "cvy_local", "https://localhost": "cvy_local", "http://[::1]:7070": "cvy_local",
		"http://10.1.2.3:7070": "", "https://covey.example": "", "http://localhost.example:7070": "", "http://localhost@covey.example": "", "7070": "",
	} {
		if got, err := localKey(url, file); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", url, got, err)
		}
	}
}
