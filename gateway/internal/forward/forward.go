// Package forward serves a service of the mesh at its edge: calls are decoded, admitted and sent on as they are.
//
// Chosen: handlers made from the service's descriptor, so that a method added to a public service is served without code here. Rejected:
// a handler by hand for each method; and passing frames undecoded, as the data plane does, because what is malformed should end here.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Register serves services on s by calling conn. Their generated packages must be linked in, and have no method with a stream of requests.
func Register(s grpc.ServiceRegistrar, conn grpc.ClientConnInterface, services ...*grpc.ServiceDesc) {
	for _, desc := range services {
		s.RegisterService(forwarding(desc, conn), nil)
	}
}

func forwarding(desc *grpc.ServiceDesc, conn grpc.ClientConnInterface) *grpc.ServiceDesc {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(desc.ServiceName))
	if err != nil {
		panic(fmt.Sprintf("forward: service %s: %v", desc.ServiceName, err))
	}
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	out := &grpc.ServiceDesc{ServiceName: desc.ServiceName, HandlerType: (*any)(nil), Metadata: desc.Metadata}
	for _, m := range desc.Methods {
		t := typesOf(methods.ByName(protoreflect.Name(m.MethodName)))
		full := "/" + desc.ServiceName + "/" + m.MethodName
		out.Methods = append(out.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: t.unary(full, conn)})
	}
	for _, m := range desc.Streams {
		if m.ClientStreams {
			panic("forward: " + m.StreamName + " has a stream of requests")
		}
		t := typesOf(methods.ByName(protoreflect.Name(m.StreamName)))
		full := "/" + desc.ServiceName + "/" + m.StreamName
		out.Streams = append(out.Streams, grpc.StreamDesc{StreamName: m.StreamName, ServerStreams: true, Handler: t.stream(full, conn)})
	}
	return out
}

// types makes a method's messages.
type types struct{ in, out protoreflect.MessageType }

func typesOf(m protoreflect.MethodDescriptor) types { return types{find(m.Input()), find(m.Output())} }

func find(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(fmt.Sprintf("forward: message %s: %v", d.FullName(), err))
	}
	return t
}

func fresh(t protoreflect.MessageType) proto.Message { return t.New().Interface() }

func (t types) unary(full string, conn grpc.ClientConnInterface) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := fresh(t.in)
		if err := decode(in); err != nil {
			return nil, err
		}
		call := func(ctx context.Context, req any) (any, error) {
			out := fresh(t.out)
			if err := conn.Invoke(ctx, full, req, out); err != nil {
				return nil, err
			}
			return out, nil
		}
		if intercept == nil {
			return call(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: full}, call)
	}
}

func (t types) stream(full string, conn grpc.ClientConnInterface) grpc.StreamHandler {
	return func(_ any, down grpc.ServerStream) error {
		in := fresh(t.in)
		if err := down.RecvMsg(in); err != nil {
			return err
		}
		// The call upstream ends with the one here, whose context ends when this returns.
		up, err := conn.NewStream(down.Context(), &grpc.StreamDesc{ServerStreams: true}, full)
		if err != nil {
			return err
		}
		if err := up.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := up.CloseSend(); err != nil {
			return err
		}
		for {
			out := fresh(t.out)
			if err := up.RecvMsg(out); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := down.SendMsg(out); err != nil {
				return err
			}
		}
	}
}
