package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// serve has the metrics at an address of the loopback until the test ends.
func serve(t *testing.T, m *Metrics) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func get(t *testing.T, url string) (code int, text string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func TestMetricsAreServed(t *testing.T) {
	m := New("v1")
	m.Served("ADD", 0, 8*time.Millisecond)
	m.Served("ADD", 11, 20*time.Second)
	m.Served("whatever a shim sends", 4, time.Millisecond)
	m.Restored("removed")
	waiting := 3
	m.Pending(func() int { return waiting })
	waiting = 4
	address := serve(t, m)
	code, text := get(t, "http://"+address+"/metrics")
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	for _, want := range []string{
		`braid_build_info{version="v1"} 1`,
		`braid_request_duration_seconds_bucket{code="0",command="ADD",le="0.005"} 0`,
		`braid_request_duration_seconds_bucket{code="0",command="ADD",le="0.01"} 1`,
		`braid_request_duration_seconds_count{code="11",command="ADD"} 1`,
		`braid_request_duration_seconds_count{code="4",command="other"} 1`,
		`braid_configuration_restored_total{reason="removed"} 1`,
		`braid_configuration_restored_total{reason="changed"} 0`,
		`braid_network_status_pending 4`,
		`process_resident_memory_bytes`, `go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if code, _ := get(t, "http://"+address+"/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("something else is served, too: %d", code)
	}
}
