package chassis

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/v2"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/services/chassis/apierr"
	"github.com/coveyhq/covey/services/chassis/relay"
	"github.com/coveyhq/covey/services/chassis/tenant"
)

// newServer makes the gRPC server; doc.go says what a call meets in it.
func (d *Daemon) newServer() *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.Creds(d.serverCredentials()),
		grpc.StatsHandler(otelgrpc.NewServerHandler(d.otel()...)),
		grpc.ChainUnaryInterceptor(
			d.identifyUnary,
			selector.UnaryServerInterceptor(logging.UnaryServerInterceptor(callLogger(d.log), logOptions...), selector.MatchFunc(logged)),
			d.answerUnary,
			recovery.UnaryServerInterceptor(),
			d.admitUnary,
			d.deadlineUnary,
		),
		grpc.ChainStreamInterceptor(
			d.identifyStream,
			selector.StreamServerInterceptor(logging.StreamServerInterceptor(callLogger(d.log), logOptions...), selector.MatchFunc(logged)),
			d.answerStream,
			recovery.StreamServerInterceptor(),
			d.admitStream,
			d.endlessStream,
		),
		grpc.MaxRecvMsgSize(relay.MaxMessage),
		grpc.MaxSendMsgSize(relay.MaxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
	if d.opts.relay != nil {
		opts = append(opts, grpc.UnknownServiceHandler(d.opts.relay.Handle), grpc.ForceServerCodecV2(relay.Codec()))
	}
	return grpc.NewServer(append(opts, d.opts.server...)...)
}

// otel are the options of OpenTelemetry's handlers, which leave health checks out.
func (d *Daemon) otel() []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(d.tel.Tracers), otelgrpc.WithMeterProvider(d.tel.Meters), otelgrpc.WithPropagators(d.tel.Propagator),
		otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool { return !isHealth(i.FullMethodName) }),
	}
}

func isHealth(fullMethod string) bool {
	return strings.HasPrefix(fullMethod, "/grpc.health.v1.Health/")
}

func logged(_ context.Context, c interceptors.CallMeta) bool { return !isHealth(c.FullMethod()) }

// identify gives a call its tenant and request id, which is made here where the caller has none, and tells the caller the id in a trailer:
// a header would be a sign of life, after which a relay does not look for the sandbox elsewhere.
func (d *Daemon) identify(ctx context.Context) (context.Context, metadata.MD) {
	ctx = tenant.Incoming(fromWeb(ctx), !d.opts.public)
	if tenant.RequestID(ctx) == "" {
		ctx = tenant.WithRequestID(ctx, "req_"+ulid.Make().String())
	}
	return ctx, metadata.Pairs(tenant.RequestIDKey, tenant.RequestID(ctx))
}

func (d *Daemon) identifyUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, trailer := d.identify(ctx)
	_ = grpc.SetTrailer(ctx, trailer) // Fails only where the call has already ended.
	return next(ctx, req)
}

func (d *Daemon) identifyStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, trailer := d.identify(ss.Context())
	ss.SetTrailer(trailer)
	return next(srv, &middleware.WrappedServerStream{ServerStream: ss, WrappedContext: ctx})
}

// admit asks who the caller is and whether it may.
func (d *Daemon) admit(ctx context.Context, fullMethod string) (context.Context, error) {
	if isHealth(fullMethod) {
		return ctx, nil
	}
	ctx, err := d.checkPeer(ctx, fullMethod)
	if err != nil || d.opts.auth == nil {
		return ctx, err
	}
	return d.opts.auth(ctx, fullMethod)
}

func (d *Daemon) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ctx, err := d.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	res, err := next(ctx, req)
	return res, ended(ctx, err)
}

func (d *Daemon) admitStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := d.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return ended(ctx, next(srv, &middleware.WrappedServerStream{ServerStream: ss, WrappedContext: ctx}))
}

// ended is the answer to a call that failed because the hook for authentication has ended its context: the status that is the cause.
func ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	if s, ok := status.FromError(context.Cause(ctx)); ok && s.Code() != codes.OK {
		return s.Err()
	}
	return err
}

// deadlineUnary bounds calls that bring no deadline. Streams have none: some are meant to go on.
func (d *Daemon) deadlineUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.cfg.Deadline)
		defer cancel()
	}
	return next(ctx, req)
}

// endlessStream ends streams that would not end by themselves when the daemon drains.
func (d *Daemon) endlessStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !d.opts.endless[info.FullMethod] {
		return next(srv, ss)
	}
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-d.draining:
			cancel()
		case <-ctx.Done():
		}
	})
	err := next(srv, &middleware.WrappedServerStream{ServerStream: ss, WrappedContext: ctx})
	cancel()
	waiting.Wait()
	select {
	case <-d.draining:
		return apierr.E(codes.Unavailable, "SHUTTING_DOWN", d.cfg.Service+" is shutting down; try again")
	default:
		return err
	}
}

var logOptions = []logging.Option{
	logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(callLevel), logging.WithDurationField(logging.DurationToDurationField),
	logging.WithDisableLoggingFields(logging.SystemTag[0], logging.ComponentFieldKey, logging.MethodTypeFieldKey),
}

// callLevel is the level that the end of a call is logged with: success and clients' mistakes are not news.
func callLevel(c codes.Code) logging.Level {
	switch c {
	case codes.OK, codes.Canceled:
		return logging.LevelDebug
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return logging.LevelError
	case codes.Unavailable, codes.DeadlineExceeded:
		return logging.LevelWarn
	}
	return logging.LevelInfo
}

func callLogger(l *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		l.Log(ctx, slog.Level(level), msg, fields...)
	})
}
