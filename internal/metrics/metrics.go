// Package metrics tells Prometheus what the daemon of a node does.
// docs/metrics.md lists the names.
package metrics

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics counts. Its methods may be called from any goroutine.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	restored *prometheus.CounterVec
}

// New makes the metrics of a daemon of that version, with nothing counted.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "braid_request_duration_seconds",
			Help:    "CNI requests of the runtime by command and by the error code of the answer, 0 for none.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"command", "code"}),
		restored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "braid_configuration_restored_total",
			Help: "How often 00-braid.conflist was put back, because it was removed (or renamed) or changed.",
		}, []string{"reason"}),
	}
	m.registry.MustRegister(m.requests, m.restored,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, reason := range []string{"removed", "changed"} {
		m.restored.WithLabelValues(reason) // seen at 0 before it happens
	}
	m.gauge("braid_build_info", "Always 1, with the version of braidd.", prometheus.Labels{"version": version}, func() int { return 1 })
	return m
}

// commands are the verbs of CNI that braidd serves.
var commands = []string{"ADD", "DEL", "CHECK", "STATUS", "GC"}

// Served counts a request that took so long. Code is that of the error that was
// the answer (CNI specification, "Error"), 0 for success.
func (m *Metrics) Served(command string, code uint, took time.Duration) {
	if !slices.Contains(commands, command) {
		command = "other"
	}
	m.requests.WithLabelValues(command, strconv.FormatUint(uint64(code), 10)).Observe(took.Seconds())
}

// Restored counts that Braid's configuration was put back.
func (m *Metrics) Restored(reason string) { m.restored.WithLabelValues(reason).Inc() }

// Pending has count asked, whenever somebody looks, how many pods wait for their
// network status to be written. Call it once.
func (m *Metrics) Pending(count func() int) {
	m.gauge("braid_network_status_pending", "Pods whose network-status annotation is about to be written.", nil, count)
}

func (m *Metrics) gauge(name, help string, labels prometheus.Labels, value func() int) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels},
		func() float64 { return float64(value()) },
	))
}

const (
	// lookers is how many may look at once, and lookTime how long one may take:
	// whoever reaches the address keeps the daemon busy with no more than that.
	lookers  = 2
	lookTime = 10 * time.Second
)

// Serve answers GET /metrics until ctx ends. It closes the listener.
func (m *Metrics) Serve(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: lookers, Timeout: lookTime}))
	server := &http.Server{
		Handler: mux, ReadTimeout: lookTime, WriteTimeout: 2 * lookTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
