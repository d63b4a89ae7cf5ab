// Package telemetry sets up what a daemon tells about itself: logs with trace ids, OpenTelemetry traces and metrics, Prometheus metrics.
//
// Traces and metrics go out by OTLP if the standard OTEL_* variables ask for it, and nowhere otherwise. Metrics can always be read from
// Registry. With Config.TraceFile, spans are also appended to a file, one JSON object a line (see Span), so that a mesh on one machine can
// show its traces with nothing else installed.
//
// Chosen: providers as values, owned by one daemon. Rejected: OpenTelemetry's process-wide providers, because then two daemons in one test
// process report as one; and a collector beside the local mesh, because a file and a reader do the same with nothing to install.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Config is the configurable part.
type Config struct {
	// TraceFile is a file that spans are appended to; its directory is made. Empty means none.
	TraceFile string `yaml:"trace_file"`
}

// Telemetry is one daemon's set-up.
type Telemetry struct {
	Tracers    *sdktrace.TracerProvider
	Meters     *sdkmetric.MeterProvider
	Propagator propagation.TextMapPropagator
	// Registry has all metrics, for /metrics.
	Registry *prometheus.Registry
}

// New sets telemetry up for a service on a host (its id may be empty).
func New(ctx context.Context, c Config, service, hostID string) (_ *Telemetry, err error) {
	res, err := describe(ctx, service, hostID)
	if err != nil {
		return nil, err
	}
	spans, err := spanProcessors(ctx, c)
	if err != nil {
		return nil, err
	}
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	for _, p := range spans {
		opts = append(opts, sdktrace.WithSpanProcessor(p))
	}
	tracers := sdktrace.NewTracerProvider(opts...)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	readers, err := metricReaders(ctx, registry)
	if err != nil {
		return nil, errors.Join(err, tracers.Shutdown(ctx))
	}
	mopts := []sdkmetric.Option{sdkmetric.WithResource(res)}
	for _, r := range readers {
		mopts = append(mopts, sdkmetric.WithReader(r))
	}
	return &Telemetry{
		Tracers: tracers, Meters: sdkmetric.NewMeterProvider(mopts...), Registry: registry,
		Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}, nil
}

func describe(ctx context.Context, service, hostID string) (*resource.Resource, error) {
	attrs := []attribute.KeyValue{attribute.String("service.name", service)}
	if hostID == "" {
		hostID, _ = os.Hostname() // Best effort; a trace without it is still a trace.
	}
	if hostID != "" {
		attrs = append(attrs, attribute.String("host.id", hostID), attribute.String("service.instance.id", service+"-"+hostID))
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(attrs...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("telemetry: describe this process: %w", err)
	}
	return res, nil
}

// asked tells whether the environment asks for an exporter of a signal, "TRACES" or "METRICS".
func asked(signal string) bool {
	for _, v := range []string{"OTEL_" + signal + "_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT"} {
		if os.Getenv(v) != "" {
			return os.Getenv("OTEL_SDK_DISABLED") != "true"
		}
	}
	return false
}

func spanProcessors(ctx context.Context, c Config) ([]sdktrace.SpanProcessor, error) {
	var out []sdktrace.SpanProcessor
	if asked("TRACES") {
		e, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: exporter of traces from OTEL_* variables: %w", err)
		}
		out = append(out, sdktrace.NewBatchSpanProcessor(e))
	}
	if c.TraceFile != "" {
		f, err := newSpanFile(c.TraceFile)
		if err != nil {
			return nil, err
		}
		// Short, so that a trace can be read right after what it shows.
		out = append(out, sdktrace.NewBatchSpanProcessor(f, sdktrace.WithBatchTimeout(200*time.Millisecond)))
	}
	return out, nil
}

func metricReaders(ctx context.Context, registry *prometheus.Registry) ([]sdkmetric.Reader, error) {
	prom, err := promexporter.New(promexporter.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("telemetry: Prometheus: %w", err)
	}
	out := []sdkmetric.Reader{prom}
	if asked("METRICS") {
		r, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: exporter of metrics from OTEL_* variables: %w", err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Shutdown sends what is left and ends all goroutines; ctx bounds it.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	return errors.Join(t.Tracers.Shutdown(ctx), t.Meters.Shutdown(ctx))
}
