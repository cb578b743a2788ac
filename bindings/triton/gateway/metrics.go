// Metrics of the gateway, for Prometheus.

package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type metrics struct {
	handler         http.Handler
	registry        *prometheus.Registry
	requests        *prometheus.CounterVec
	retries, spills prometheus.Counter
	first, total    prometheus.Histogram
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		buckets := prometheus.ExponentialBuckets(0.004, 2, 17) // up to 4.4 minutes
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cos_gateway_requests_total",
			Help: "Ended requests by status; 499 is a client that left"}, []string{"code"}),
		retries: counter("cos_gateway_retries_total", "Requests sent to one more replica, because one failed"),
		spills:  counter("cos_gateway_spills_total", "Requests sent past the first replica of their prefix"),
		first:   histogram("cos_gateway_first_byte_seconds", "From a request to the first byte of its answer"),
		total:   histogram("cos_gateway_request_seconds", "From a request to the end of its answer"),
	}
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	m.registry.MustRegister(m.requests, m.retries, m.spills, m.first, m.total, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// request counts a request that has ended.
func (m *metrics) request(code int, first, total time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(code)).Inc()
	m.total.Observe(total.Seconds())
	if first > 0 {
		m.first.Observe(first.Seconds())
	}
}

var (
	labels     = []string{"replica"}
	readyGauge = prometheus.NewDesc("cos_gateway_replica_ready", "Whether a replica gets requests", labels, nil)
	loadGauge  = prometheus.NewDesc("cos_gateway_replica_requests", "Requests that a replica has", labels, nil)
)

// Describe and Collect make the fleet a prometheus.Collector. So replicas that are gone leave no metrics behind.
func (f *fleet) Describe(to chan<- *prometheus.Desc) {
	to <- readyGauge
	to <- loadGauge
}

func (f *fleet) Collect(to chan<- prometheus.Metric) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for address, r := range f.replicas {
		ready := 0.0
		if r.ready {
			ready = 1
		}
		to <- prometheus.MustNewConstMetric(readyGauge, prometheus.GaugeValue, ready, address)
		to <- prometheus.MustNewConstMetric(loadGauge, prometheus.GaugeValue, float64(r.load), address)
	}
}
