package guest

import (
	"runtime"
	"testing"
	"time"
)

func TestTheCountersRateIsMeasured(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		if khz := measureTSC(); khz != 0 {
			t.Errorf("%d kHz, without a counter", khz)
		}
		return
	}
	from, fromTicks := clocks()
	got := measureTSC()
	time.Sleep(200 * time.Millisecond)
	to, toTicks := clocks()
	want := float64(toTicks-fromTicks) / float64(to.Sub(from)) * float64(time.Millisecond)
	if off := float64(got)/want - 1; off < -0.001 || off > 0.001 {
		t.Errorf("%d kHz, and %.0f over ten times as long", got, want)
	}
}
