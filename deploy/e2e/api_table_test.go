package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/coveyhq/covey/deploy/meshtest"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// world is one pass through the table, over one transport.
type world struct {
	caller
	via  string
	kept map[string]string
}

// answer is an answer as JSON.
type answer = map[string]any

var transports = map[string]func(*world, row) answer{"REST": (*world).byREST, "gRPC": (*world).byGRPC, "CLI": (*world).byProgram}

func TestEveryRouteOfTheTableWorksOverREST(t *testing.T)          { throughTheTable(t, "REST") }
func TestEveryMethodOfTheTableWorksNativelyOverGRPC(t *testing.T) { throughTheTable(t, "gRPC") }
func TestEveryRowOfTheTableWorksWithTheCoveyProgram(t *testing.T) { throughTheTable(t, "CLI") }

func throughTheTable(t *testing.T, via string) {
	c := api(t)
	w := &world{c, via, map[string]string{"via": strings.ToLower(via), "dir": s.m.Dir}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), overrun*20*time.Second)
		defer cancel()
		cordon(t, as(ctx, s.key), "host-b", false)
	})
	for _, r := range table {
		name := r.method
		if name == "" {
			name = strings.Join(append(r.routes, r.cli...), " ")
		}
		own, do := r.own[via], transports[via]
		if own == nil && !r.generic(t, via) {
			continue // TestTheTableLacksNothing sees that the row says why.
		}
		if !t.Run(name, func(t *testing.T) {
			w.caller.t = t
			if own != nil {
				own(w)
				return
			}
			got := do(w, r)
			w.check(got, r.want)
			w.keep(got, r.keep)
		}) {
			t.Fatalf("%s failed, and what follows needs it", name)
		}
		for _, made := range []string{"sandbox", "copy"} {
			if id := w.kept[made]; id != "" && w.kept["removed "+made] == "" {
				w.kept["removed "+made] = "yes"
				remove(t, id)
			}
		}
	}
}

// generic tells whether a row is asked for over a transport in the way that most are.
func (r row) generic(t *testing.T, via string) bool {
	switch {
	case r.own != nil:
		return false
	case via == "CLI":
		return r.cli != nil
	case via == "gRPC" || r.method == "":
		return r.method != ""
	}
	route, _, _ := httpRule(descriptor(t, r.method))
	return route != "" || r.routes != nil
}

// fill replaces {name}.
func (w *world) fill(s string) string {
	for name, v := range w.kept {
		s = strings.ReplaceAll(s, "{"+name+"}", v)
	}
	return s
}

// at is what an answer has at a path like a.0.b; # is a list's length.
func at(v any, path string) any {
	for p := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case answer:
			v = in[p]
		case []any:
			i, err := strconv.Atoi(p)
			switch {
			case p == "#":
				v = len(in)
			case err != nil || i >= len(in):
				return nil
			default:
				v = in[i]
			}
		default:
			return nil
		}
	}
	return v
}

func (w *world) check(got answer, want string) {
	w.t.Helper()
	for pair := range strings.SplitSeq(want, " ") {
		path, value, _ := strings.Cut(pair, "=") // The value may have further ones.
		has := at(got, path)
		if ok := fmt.Sprint(has) == w.fill(value) || value == "*" && has != nil && has != ""; pair != "" && !ok {
			b, _ := json.Marshal(got)
			w.t.Errorf("%s is %v, want %s: %.2000s", path, has, w.fill(value), b)
		}
	}
}

func (w *world) keep(got answer, keep string) {
	w.t.Helper()
	for pair := range strings.SplitSeq(keep, " ") {
		if name, path, ok := strings.Cut(pair, "="); ok {
			v, _ := at(got, path).(string)
			if w.kept[name] = v; v == "" {
				w.t.Fatalf("the answer has no %s: %v", path, got)
			}
		}
	}
}

// full is a method's whole name.
func full(method string) string {
	service, name, _ := strings.Cut(method, "/")
	pkg, service, _ := strings.Cut(service, ".")
	return "covey." + pkg + ".v1." + service + "/" + name
}

func descriptor(t *testing.T, method string) protoreflect.MethodDescriptor {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(full(method), "/", ".")))
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return d.(protoreflect.MethodDescriptor)
}

func fresh(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// httpRule is a method's http annotation: its route, like "POST /v1/keys", and which field is the body ("*": all, "": none) and the answer ("": all).
func httpRule(d protoreflect.MethodDescriptor) (route, body, response string) {
	rule, _ := proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule)
	for verb, path := range map[string]string{"GET": rule.GetGet(), "POST": rule.GetPost(), "PUT": rule.GetPut(), "DELETE": rule.GetDelete(), "PATCH": rule.GetPatch()} {
		if path != "" {
			route = verb + " " + path
		}
	}
	return route, rule.GetBody(), rule.GetResponseBody()
}

func (w *world) request(r row) answer {
	w.t.Helper()
	ask := answer{}
	if err := json.Unmarshal([]byte(w.fill(r.ask)), &ask); err != nil {
		w.t.Fatal(err)
	}
	return ask
}

var inBraces = regexp.MustCompile(`\{(\w+)\}`)

func (w *world) byREST(r row) answer {
	w.t.Helper()
	d, ask := descriptor(w.t, r.method), w.request(r)
	route, body, _ := httpRule(d)
	if len(r.routes) > 0 {
		route = r.routes[0]
	}
	verb, path, _ := strings.Cut(route, " ")
	path = inBraces.ReplaceAllStringFunc(path, func(name string) string {
		name = strings.Trim(name, "{}")
		v := url.PathEscape(fmt.Sprint(ask[name]))
		delete(ask, name)
		return v
	})
	var sent io.Reader
	switch {
	case body != "" && body != "*":
		b, _ := json.Marshal(ask[body])
		sent = bytes.NewReader(b)
	case verb == "POST" || verb == "PUT":
		b, _ := json.Marshal(ask)
		sent = bytes.NewReader(b)
	default:
		q := url.Values{}
		for name, v := range ask {
			list, many := v.([]any)
			if !many {
				list = []any{v}
			}
			for _, e := range list {
				q.Add(name, fmt.Sprint(e))
			}
		}
		path += "?" + q.Encode()
	}
	res := w.open(verb, path, sent)
	if res.StatusCode != 200 {
		b, _ := io.ReadAll(res.Body)
		w.t.Fatalf("%s %s: %d %s", verb, path, res.StatusCode, b)
	}
	if d.IsStreamingServer() {
		return w.line(res.Body, r.last)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.parse(b)
}

func (w *world) parse(b []byte) (v answer) {
	w.t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		w.t.Fatalf("%q: %v", b, err)
	}
	return v
}

// line reads the first line, or the last one, as JSON.
func (w *world) line(from io.Reader, last bool) answer {
	w.t.Helper()
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	var line []byte
	for lines.Scan() {
		if line = bytes.Clone(lines.Bytes()); !last {
			break
		}
	}
	if line == nil {
		w.t.Fatalf("no line: %v", lines.Err())
	}
	return w.parse(line)
}

func (w *world) byGRPC(r row) answer {
	w.t.Helper()
	d := descriptor(w.t, r.method)
	in, out := fresh(w.t, d.Input()), fresh(w.t, d.Output())
	if err := protojson.Unmarshal([]byte(w.fill(r.ask)), in); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	if !d.IsStreamingServer() {
		if err := s.conn.Invoke(ctx, "/"+full(r.method), in, out); err != nil {
			w.t.Fatal(err)
		}
		return w.shown(d, out)
	}
	st, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+full(r.method))
	if err == nil {
		err = errors.Join(st.SendMsg(in), st.CloseSend(), st.RecvMsg(out))
	}
	for err == nil && r.last {
		next := fresh(w.t, d.Output())
		if err = st.RecvMsg(next); err == nil {
			out = next
		}
	}
	if err != nil && !(r.last && errors.Is(err, io.EOF)) {
		w.t.Fatal(err)
	}
	return w.shown(d, out)
}

// shown is a message as REST shows it.
func (w *world) shown(d protoreflect.MethodDescriptor, m proto.Message) answer {
	w.t.Helper()
	if _, _, field := httpRule(d); field != "" {
		m = m.ProtoReflect().Get(d.Output().Fields().ByName(protoreflect.Name(field))).Message().Interface()
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.parse(b)
}

// covey is the program with a key and a gateway, ready to be run.
func covey(t *testing.T, ctx context.Context, key string, args ...string) *exec.Cmd {
	t.Helper()
	tools, err := meshtest.Prepared()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(tools.Bin, "covey"), args...)
	cmd.Env = []string{"COVEY_URL=" + s.m.URL, "COVEY_API_KEY=" + key, "HOME=" + t.TempDir()}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (w *world) byProgram(r row) answer {
	w.t.Helper()
	args := []string{"--json"}
	for _, a := range r.cli {
		args = append(args, w.fill(a))
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	cmd := covey(w.t, ctx, s.key, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if r.method != "" && descriptor(w.t, r.method).IsStreamingServer() && !r.last {
		defer func() {
			cancel()
			_ = cmd.Wait() // It was killed.
		}()
		return w.line(out, false)
	}
	b, err := io.ReadAll(out)
	if wait := cmd.Wait(); err != nil || cmd.ProcessState.ExitCode() != r.exit {
		w.t.Fatalf("covey %q: %v, %v: %s%s", args, wait, err, b, stderr.Bytes())
	}
	return w.line(bytes.NewReader(b), r.last)
}

// documentedRoutes are the routes of the description that the gateway serves.
func (c caller) documentedRoutes() (all []string) {
	c.t.Helper()
	for path, operations := range c.ok("GET", "/openapi.json", "")["paths"].(answer) {
		for verb := range operations.(answer) {
			all = append(all, strings.ToUpper(verb)+" "+path)
		}
	}
	slices.Sort(all)
	return all
}

// publicMethods are the methods that the gateway serves, found by calling all that there are with nonsense.
func publicMethods(t *testing.T, ctx context.Context) (all []protoreflect.MethodDescriptor) {
	t.Helper()
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "covey.") {
			return true
		}
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				err := nonsense(t, ctx, m)
				if status.Code(err) != codes.Unimplemented {
					all = append(all, m)
				} else if apierr.Reason(err) != "UNKNOWN_METHOD" {
					t.Errorf("%s: %v (%s)", m.FullName(), err, apierr.Reason(err))
				}
			}
		}
		return true
	})
	return all
}

// nonsense calls a method with a request whose texts are all illegal.
func nonsense(t *testing.T, ctx context.Context, m protoreflect.MethodDescriptor) error {
	t.Helper()
	in := fresh(t, m.Input())
	for i := range m.Input().Fields().Len() {
		if f := m.Input().Fields().Get(i); f.Kind() == protoreflect.StringKind && !f.IsList() && !f.IsMap() && f.ContainingOneof() == nil {
			in.ProtoReflect().Set(f, protoreflect.ValueOfString("!"))
		}
	}
	return send(t, ctx, m, in)
}

// send makes a call with one message and returns its error; what it answers is not looked at.
func send(t *testing.T, ctx context.Context, m protoreflect.MethodDescriptor, in proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, overrun*20*time.Second)
	defer cancel()
	st, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()))
	if err != nil {
		return err
	}
	if err := st.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	if err := st.RecvMsg(fresh(t, m.Output())); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func TestTheTableLacksNothingThatTheGatewayServesOrDescribes(t *testing.T) {
	c := api(t)
	documented := c.documentedRoutes()
	covered, methods := map[string]bool{}, map[string]bool{}
	for _, r := range table {
		routes := r.routes
		if r.method != "" {
			methods[full(r.method)] = true
			if route, _, _ := httpRule(descriptor(t, r.method)); len(routes) == 0 && route != "" {
				routes = []string{route}
			}
		}
		for _, route := range routes {
			covered[route] = true
			if !slices.Contains(documented, route) {
				t.Errorf("the table's route %s is not in the description", route)
			}
		}
		every := r.method != "" && len(r.cli) > 0
		if r.own != nil {
			every = len(r.own) == len(transports)
		}
		if !every && r.only == "" {
			t.Errorf("%s %v: it must say why it is not offered by all of %v", r.method, r.routes, slices.Sorted(maps.Keys(transports)))
		}
	}
	for _, route := range documented {
		if !covered[route] {
			t.Errorf("no row of the table covers %s", route)
		}
	}
	served := publicMethods(t, c.ctx)
	if len(served) < 35 {
		t.Errorf("only %d methods are served", len(served))
	}
	for _, m := range served {
		if name := fmt.Sprintf("%s/%s", m.Parent().FullName(), m.Name()); !methods[name] {
			t.Errorf("no row of the table covers %s", name)
		}
		if route, _, _ := httpRule(m); route != "" && !covered[route] {
			t.Errorf("no row of the table covers %s of %s", route, m.FullName())
		}
	}
}
