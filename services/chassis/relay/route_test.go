package relay

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

// pieces cuts a message into buffers of n bytes, as it may come from the wire.
func pieces(b []byte, n int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		k := min(n, len(b))
		out = append(out, mem.SliceBuffer(b[:k]))
		b = b[k:]
	}
	return out
}

func TestSandboxIDIsReadFromAnyMessage(t *testing.T) {
	id := "sb_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	full, err := proto.Marshal(&guestv1.ReadFileRequest{SandboxId: id, Path: "/x", Offset: 7, Limit: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	twice := protowire.AppendString(protowire.AppendTag(append([]byte(nil), full...), 1, protowire.BytesType), "sb_last")
	long := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), string(make([]byte, maxSandboxID+1)))
	fixed := protowire.AppendFixed64(protowire.AppendTag(nil, 9, protowire.Fixed64Type), 1)
	for name, test := range map[string]struct {
		data []byte
		want string
		bad  bool
	}{
		"first field":     {data: full, want: id},
		"last one counts": {data: twice, want: "sb_last"},
		"no field":        {data: fixed},
		"empty message":   {},
		"cut off":         {data: full[:5], bad: true},
		"too long":        {data: long, bad: true},
		"a group":         {data: protowire.AppendTag(nil, 2, protowire.StartGroupType), bad: true},
		"field number 0":  {data: []byte{0x02, 0x00}, bad: true},
	} {
		for _, n := range []int{1, 3, 1 << 10} {
			got, err := sandboxID(pieces(test.data, n))
			if got != test.want && err == nil || (err != nil) != test.bad {
				t.Errorf("%s in pieces of %d: %q, %v", name, n, got, err)
			}
		}
	}
}

// FuzzSandboxID: what protobuf takes must give the same id here, and nothing may crash.
func FuzzSandboxID(f *testing.F) {
	b, err := proto.Marshal(&guestv1.ExecRequest{SandboxId: "sb_x", Cmd: "/bin/sh", Args: []string{"-c", "true"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, 3)
	f.Add([]byte{0x0a, 0x80, 0x80, 0x80, 0x80, 0x08}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n <= 0 {
			n = 1
		}
		got, err := sandboxID(pieces(b, n))
		var m guestv1.ExecRequest
		if err != nil || proto.Unmarshal(b, &m) != nil {
			return
		}
		if got != m.GetSandboxId() {
			t.Errorf("got %q, protobuf reads %q", got, m.GetSandboxId())
		}
	})
}
