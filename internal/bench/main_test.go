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

const podsOutput = `pkg: braid.dev/braid/internal/e2e
BenchmarkPods/direct/ADD/1-2 	1	17.00 p50-ms	20.00 p99-ms	50.0 pods/s
BenchmarkPods/direct/DEL/1-2 	1	40.00 p50-ms	50.00 p99-ms	20.0 pods/s
BenchmarkPods/direct/ADD/16-2 	1	300.0 p50-ms	400.0 p99-ms	45.0 pods/s
BenchmarkPods/direct/DEL/16-2 	1	300.0 p50-ms	400.0 p99-ms	15.0 pods/s
BenchmarkPods/default/ADD/1-2 	1	18.50 p50-ms	20.00 p99-ms	50.0 pods/s
BenchmarkPods/default/DEL/1-2 	1	8.00 p50-ms	9.00 p99-ms	90.0 pods/s
BenchmarkPods/default/ADD/16-2 	1	100.0 p50-ms	150.0 p99-ms	120.0 pods/s
BenchmarkPods/default/DEL/16-2 	1	100.0 p50-ms	150.0 p99-ms	130.0 pods/s
BenchmarkPods/native1/ADD/1-2 	1	22.00 p50-ms	30.00 p99-ms	40.0 pods/s
BenchmarkPods/native1/status/1-2 	1	150.0 p50-ms	160.0 p99-ms	6.0 pods/s
BenchmarkPods/default-waits/ADD/1-2 	1	25.50 p50-ms	30.00 p99-ms	40.0 pods/s
BenchmarkPods/native1-waits/ADD/1-2 	1	28.75 p50-ms	30.00 p99-ms	40.0 pods/s
BenchmarkPods/native1/ADD/16-2 	1	200.0 p50-ms	250.0 p99-ms	36.0 pods/s
BenchmarkPods/native4/ADD/1-2 	1	28.50 p50-ms	30.00 p99-ms	30.0 pods/s
BenchmarkPods/machine/stolen-2 	1	7.250 %
BenchmarkPods/shim/STATUS/1-2 	1	4.000 p50-ms	20.50 p99-ms	200 pods/s
BenchmarkPods/shim/memory-2 	1	4.000 MB
BenchmarkPods/daemon/full-2 	1	30.00 MB	31.00 peak-MB
`

// shows reports the output of benchmarks, in which all these words must come, and
// returns the report with one space for each gap.
func shows(t *testing.T, benchmarks string, words ...string) (text string) {
	t.Helper()
	var out strings.Builder
	if err := report(strings.NewReader(benchmarks), &out); err != nil {
		t.Fatal(err)
	}
	text = strings.Join(strings.Fields(out.String()), " ")
	for _, want := range words {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	return text
}

func TestTableOfPodsShowsWhatMissesItsGoal(t *testing.T) {
	text := shows(t, podsOutput,
		"plugins called directly 17.0 ms 20.0 ms 40.0 ms 50.0 ms 300.0 ms 400.0 ms 45.0 15.0 1.00",
		"Braid, default network only 18.5 ms 20.0 ms 8.0 ms 9.0 ms 100.0 ms 150.0 ms 120.0 130.0 2.67",
		"goal measured if direct took 17.3 ms",
		"directly at most 2 ms 1.50 ms 1.53 ms",
		"first native network more at most 3 ms ! 3.50 ms ! 3.56 ms",
		"of 8 pods began 150 ms",
		"and the pod's status 10.25 ms",
		"took meanwhile 7.2 %",
		"due anyway 3.25 ms",
		"each further native network at most 3 ms 2.17 ms 2.20 ms",
		"one's pods/s ! 0.80",
		"STATUS, p99 at most 20 ms ! 20.50 ms ! 20.86 ms",
		"shim: memory at most 6 MB 4.00 MB",
		"networks at most 35 MB 30.00 MB",
	)
	if strings.Contains(text, "attach + detach") {
		t.Errorf("a table without rows:\n%s", text)
	}
}

func TestGoalsAreComparedAtTheSpeedThatTheyWereSetAt(t *testing.T) {
	slow := strings.NewReplacer(
		"17.00 p50-ms", "34.60 p50-ms", "18.50 p50-ms", "14.00 p50-ms", "22.00 p50-ms", "18.00 p50-ms",
		"28.50 p50-ms", "39.00 p50-ms", "20.50 p99-ms", "40.20 p99-ms").Replace(podsOutput)
	shows(t, slow,
		"first native network more at most 3 ms ! 4.00 ms 2.00 ms",
		"each further native network at most 3 ms ! 7.00 ms ! 3.50 ms",
		"STATUS, p99 at most 20 ms ! 40.20 ms ! 20.10 ms",
	)
}

func TestDifferencesOfMediansTellHowFarTheyMayBeOff(t *testing.T) {
	errors := strings.NewReplacer(
		"17.00 p50-ms", "34.60 p50-ms 0.6 p50-error-ms", "18.50 p50-ms", "18.50 p50-ms 0.8 p50-error-ms",
		"22.00 p50-ms", "22.00 p50-ms 0.6 p50-error-ms", "28.50 p50-ms", "28.50 p50-ms 1.6 p50-error-ms").Replace(podsOutput)
	shows(t, errors,
		"directly at most 2 ms -16.10 ± 1.00 ms -8.05 ± 0.50 ms",
		"first native network more at most 3 ms ! 3.50 ± 1.00 ms 1.75 ± 0.50 ms",
		"each further native network at most 3 ms 2.17 ± 0.57 ms 1.08 ± 0.28 ms",
	)
}

func TestAFailedBenchmarkFailsTheReport(t *testing.T) {
	for _, in := range []string{output + "FAIL\tbraid.dev/braid/internal/driver/tuning\t0.2s\n", "PASS\n"} {
		if err := report(strings.NewReader(in), &strings.Builder{}); err == nil {
			t.Errorf("reported as if all were well:\n%s", in)
		}
	}
}
