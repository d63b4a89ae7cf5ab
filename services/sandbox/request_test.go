package sandbox

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestOnlyTheLegalTransitionsAreMade(t *testing.T) {
	// As the target architecture has them; every other is refused.
	legal := map[State]string{
		Pending: "STARTING STOPPING FAILED", Starting: "RUNNING STOPPING FAILED", Running: "PAUSING PAUSED STOPPING STOPPED FAILED",
		Pausing: "PAUSED RUNNING STOPPING STOPPED FAILED", Paused: "RESUMING STOPPING", Resuming: "RUNNING PAUSED STOPPING FAILED",
		Stopping: "STOPPED", Stopped: "", Failed: "",
	}
	for _, from := range States {
		for _, to := range States {
			sb := Sandbox{ID: "sb_1", State: from}
			want := from == to
			for _, l := range strings.Fields(legal[from]) {
				want = want || State(l) == to
			}
			if err := sb.become(to); (err == nil) != want {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
		if from.Final() && len(next[from]) > 0 || from.Working() && from.Final() {
			t.Errorf("%s is final and goes on", from)
		}
	}
}

func TestARefusalNamesTheStateAndWhatIsLegal(t *testing.T) {
	sb := Sandbox{ID: "sb_1", State: Paused}
	err := sb.illegal(OpPing, Running)
	for _, w := range []string{"PAUSED", "ping", "RUNNING", "resume", "delete"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %s", err, w)
		}
	}
	if !errors.Is(err, Precondition) {
		t.Error("kind is", err.Kind)
	}
}

func TestAnErrorSurvivesBeingStored(t *testing.T) {
	b, err := json.Marshal(field("vcpus", "must be 1 to 8, got %d", 9))
	if err != nil {
		t.Fatal(err)
	}
	var e Error
	if err := json.Unmarshal(b, &e); err != nil || e.Field != "vcpus" || !errors.Is(&e, Invalid) || e.Error() != "must be 1 to 8, got 9" {
		t.Fatalf("%+v, %v", e, err)
	}
}

func TestLogsShowNoEnvironment(t *testing.T) {
	if v := (Env{"TOKEN": "secret", "A": "b"}).LogValue().String(); v != "A,TOKEN" {
		t.Fatal(v)
	}
}

// FuzzPageToken: whatever a client sends as a page token is refused or is a position that could have been given out.
func FuzzPageToken(f *testing.F) {
	filter := (&ListRequest{}).filterHash("acme")
	good, err := json.Marshal(pageToken{Time: time.Unix(1700000000, 0), ID: "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV", Filter: filter})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(base64.RawURLEncoding.EncodeToString(good))
	f.Add("")
	f.Add("e30")
	f.Fuzz(func(t *testing.T, token string) {
		got, err := pageFrom(token, sandboxID, filter)
		if err == nil && got != (Page{}) && !sandboxID.MatchString(got.BeforeID) {
			t.Fatalf("accepted %+v", got)
		}
		if err != nil && !errors.Is(err, Invalid) {
			t.Fatal(err)
		}
	})
}

// FuzzResumeToken: a resume token is refused or lies in what is kept.
func FuzzResumeToken(f *testing.F) {
	f.Add("10", int64(3), int64(20))
	f.Add("-1", int64(1), int64(0))
	f.Fuzz(func(t *testing.T, token string, first, last int64) {
		n, err := parseResumeToken(token, first, last)
		if err == nil && (n < 0 || n > last || n+1 < first) {
			t.Fatalf("accepted %d of %d to %d", n, first, last)
		}
	})
}
