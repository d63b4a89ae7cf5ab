package transfer

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// metrics of this package, all beginning with "covey.transfer.".
type metrics struct {
	uploadBytes, uploads, fetchBytes, fetches, heals metric.Int64Counter
}

// newMetrics makes the instruments; a nil meter makes them count nothing. waiting tells how many uploads are under way, refused how many of
// those the registry refuses, and damaged how many cannot be sent because they are damaged here.
func newMetrics(m metric.Meter, waiting, refused, damaged func() int) (*metrics, error) {
	if m == nil {
		m = noop.NewMeterProvider().Meter("")
	}
	x := &metrics{}
	for _, c := range []struct {
		to               *metric.Int64Counter
		name, unit, desc string
	}{
		{&x.uploadBytes, "upload.bytes", "By", "Bytes sent to the registry."},
		{&x.uploads, "uploads", "{try}", "Tries to upload a snapshot, by result."},
		{&x.fetchBytes, "fetch.bytes", "By", "Bytes fetched, by source."},
		{&x.fetches, "fetches", "{range}", "Ranges asked for, by source and result."},
		{&x.heals, "heals", "{part}", "Damaged parts of snapshots on this host that were to be replaced by what is elsewhere, by result."},
	} {
		var err error
		if *c.to, err = m.Int64Counter("covey.transfer."+c.name, metric.WithUnit(c.unit), metric.WithDescription(c.desc)); err != nil {
			return nil, fmt.Errorf("transfer: %w", err)
		}
	}
	for _, g := range []struct {
		name, desc string
		now        func() int
	}{
		{"uploads.pending", "Snapshots of this host that are not durable yet.", waiting},
		{"uploads.refused", "Snapshots of this host that the registry refuses to take.", refused},
		{"uploads.damaged", "Snapshots of this host that are damaged here and whole nowhere else.", damaged},
	} {
		_, err := m.Int64ObservableGauge("covey.transfer."+g.name, metric.WithUnit("{snapshot}"), metric.WithDescription(g.desc),
			metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
				o.Observe(int64(g.now()))
				return nil
			}))
		if err != nil {
			return nil, fmt.Errorf("transfer: %w", err)
		}
	}
	return x, nil
}

func result(err error) string {
	var d *damage
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &d):
		return "damaged"
	case refused(err):
		return "refused"
	}
	return "error"
}

func (x *metrics) uploaded(ctx context.Context, err error) {
	x.uploads.Add(ctx, 1, metric.WithAttributes(attribute.String("result", result(err))))
}

func (x *metrics) fetched(ctx context.Context, from string, n int, err error) {
	source := attribute.String("source", from)
	x.fetches.Add(ctx, 1, metric.WithAttributes(source, attribute.String("result", result(err))))
	if err == nil {
		x.fetchBytes.Add(ctx, int64(n), metric.WithAttributes(source))
	}
}
