package dataplane

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func TestWhatHostsAnswerForThePublicServiceIsTheSameOnTheWire(t *testing.T) {
	for public, host := range ofHosts {
		a, b := method(t, public), method(t, host)
		if a.IsStreamingServer() != b.IsStreamingServer() || a.IsStreamingClient() || b.IsStreamingClient() {
			t.Errorf("%s and %s stream differently", public, host)
		}
		same(t, a.Input(), b.Input())
		same(t, a.Output(), b.Output())
	}
}

func method(t *testing.T, full string) protoreflect.MethodDescriptor {
	t.Helper()
	service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	return d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
}

func same(t *testing.T, a, b protoreflect.MessageDescriptor) {
	t.Helper()
	if a == b {
		return
	}
	if a.Fields().Len() != b.Fields().Len() {
		t.Errorf("%s has %d fields, %s %d", a.FullName(), a.Fields().Len(), b.FullName(), b.Fields().Len())
	}
	for i := range b.Fields().Len() {
		want := b.Fields().Get(i)
		got := a.Fields().ByNumber(want.Number())
		if got == nil || got.Name() != want.Name() || got.Kind() != want.Kind() || got.Cardinality() != want.Cardinality() {
			t.Errorf("%s has no field like %s", a.FullName(), want.FullName())
		} else if got.Message() != nil {
			same(t, got.Message(), want.Message())
		}
	}
}
