package main

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"braid.dev/braid/internal/metrics"
)

// TestAddressOfMetricsThatIsTakenIsSaidAndEndsNothing, and without an address there
// is nothing to say.
func TestAddressOfMetricsThatIsTakenIsSaidAndEndsNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var said strings.Builder
	p := parts{metrics: metrics.New("v1"), log: slog.New(slog.NewTextHandler(&said, nil))}
	p.serveMetrics(t.Context(), "")
	if said.Len() > 0 {
		t.Errorf("without an address: %s", said.String())
	}
	p.serveMetrics(t.Context(), taken.Addr().String())
	if !strings.Contains(said.String(), taken.Addr().String()) {
		t.Errorf("the address is not named: %q", said.String())
	}
}
