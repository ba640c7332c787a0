package main

import (
	"strings"
	"testing"
)

const output = `goos: linux
pkg: braid.dev/braid/internal/driver/bridge
BenchmarkAttachDetach/l2/driver-2         	      20	   4000000 ns/op
BenchmarkAttachDetach/l2/driver-2         	      20	   9000000 ns/op
BenchmarkAttachDetach/l2/driver-2         	      20	   2000000 ns/op
BenchmarkAttachDetach/l2/reference-2      	      20	  40000000 ns/op	 12 B/op
BenchmarkAttachDetach/netlink-2           	      20	   2000000 ns/op
PASS
pkg: braid.dev/braid/internal/driver/tuning
BenchmarkAttachDetach/driver         	       5	    500000.5 ns/op
BenchmarkAttachDetach/reference      	       5	   1000000 ns/op
BenchmarkOther-2      	       5	   1000000 ns/op
`

func TestTableHasMediansAndRatios(t *testing.T) {
	var out strings.Builder
	if err := report(strings.NewReader(output), &out); err != nil {
		t.Fatal(err)
	}
	text, ok := strings.CutPrefix(out.String(), output)
	if !ok {
		t.Errorf("the output of the benchmarks was not passed on:\n%s", out.String())
	}
	for _, want := range []string{
		"bridge/l2  4.00 ms   40.00 ms       2.00 ms          0.10      ! 2.00\n",
		"tuning  0.50 ms    1.00 ms             -        ! 0.50           -\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no row %q in\n%s", want, text)
		}
	}
}

func TestAFailedBenchmarkFailsTheReport(t *testing.T) {
	for _, in := range []string{output + "FAIL\tbraid.dev/braid/internal/driver/tuning\t0.2s\n", "PASS\n"} {
		if err := report(strings.NewReader(in), &strings.Builder{}); err == nil {
			t.Errorf("reported as if all were well:\n%s", in)
		}
	}
}
