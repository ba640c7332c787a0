package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
)

// The goals of a pod's networks, as issue 5 has them.
const (
	defaultAbove = 2.0  // ms of ADD above the plugins called directly
	eachNative   = 3.0  // ms of ADD for each native network more
	withOneMore  = 1.0  // pods/s with one more network, as a share of direct
	statusWithin = 20.0 // ms
	shimMB       = 6.0
	daemonMB     = 35.0
)

// goalsDirect is what an ADD of the plugins called directly took, in ms, on the
// machine that the goals were set by. The speed of machines differs, and that of
// one from hour to hour.
const goalsDirect = 17.3

// pods is what BenchmarkPods of internal/e2e reported: by name below it, such
// as default/ADD/1, the metrics by their unit.
type pods map[string]map[string]float64

var podsLine = regexp.MustCompile(`^BenchmarkPods/(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// read takes the line in if it is one of BenchmarkPods.
func (p pods) read(line string) {
	m := podsLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	metrics := map[string]float64{}
	fields := strings.Fields(m[2])
	for i := 0; i+1 < len(fields); i += 2 {
		if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
			metrics[fields[i+1]] = v
		}
	}
	p[m[1]] = metrics
}

// sides are the rows of the table, with what a person calls them.
var sides = []struct{ name, title string }{
	{"direct", "plugins called directly"},
	{"default", "Braid, default network only"},
	{"native1", "+ 1 native network"},
	{"native4", "+ 4 native networks"},
	{"executed1", "+ 1 executed plugin"},
	{"direct-alone", "that plugin called directly"},
	{"default-waits", "waitForNetworkStatus: true, default only, with a status"},
	{"native1-waits", "+ 1 native network"},
}

// table writes the rows and how they stand to the goals. Without any result of
// BenchmarkPods it writes nothing.
func (p pods) table(out io.Writer) error {
	if len(p) == 0 {
		return nil
	}
	fmt.Fprintln(out, "\na pod's networks: bridge, host-local and portmap for the default one, bridge and host-local for each other")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\tADD p50\tp99\tDEL p50\tp99\t16 parallel: ADD p50\tp99\tADD/s\tDEL/s\tADD/s of direct\t\n")
	for _, s := range sides {
		add, del := p[s.name+"/ADD/1"], p[s.name+"/DEL/1"]
		many, manyDel := p[s.name+"/ADD/16"], p[s.name+"/DEL/16"]
		if add == nil || many == nil {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f\t%.1f\t%.2f\t\n", s.title,
			ms(add["p50-ms"]), ms(add["p99-ms"]), ms(del["p50-ms"]), ms(del["p99-ms"]),
			ms(many["p50-ms"]), ms(many["p99-ms"]), many["pods/s"], manyDel["pods/s"],
			many["pods/s"]/p["direct/ADD/16"]["pods/s"])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return p.goals(out)
}

// goals writes what was wanted beside what was measured, and beside what times
// come to at the speed of the machine that they were wanted on.
func (p pods) goals(out io.Writer) error {
	direct, base := p["direct/ADD/1"]["p50-ms"], p["default/ADD/1"]["p50-ms"]
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\ngoal\tmeasured\tif direct took %g ms\t\n", goalsDirect)
	// Of a time that is a difference, by tells how far it may be from the truth.
	within := func(what string, goal, is, by float64) {
		speed := goalsDirect / direct
		fmt.Fprintf(w, "%s at most %g ms\t%s%.2f%s ms\t%s%.2f%s ms\t\n", what, goal,
			missed(is > goal), is, uncertain(by), missed(is*speed > goal), is*speed, uncertain(by*speed))
	}
	fits := func(what string, goal, is float64) {
		fmt.Fprintf(w, "%s at most %g MB\t%s%.2f MB\t\t\n", what, goal, missed(is > goal), is)
	}
	within("default network only: above the plugins called directly", defaultAbove, base-direct, p.together("direct", "default"))
	one, four := p["native1/ADD/1"]["p50-ms"], p["native4/ADD/1"]["p50-ms"]
	within("first native network more", eachNative, one-base, p.together("default", "native1"))
	within("each further native network", eachNative, (four-one)/3, p.together("native1", "native4")/3)
	share := p["native1/ADD/16"]["pods/s"] / p["direct/ADD/16"]["pods/s"]
	fmt.Fprintf(w, "16 parallel, one network more: at least %g of the directly called one's pods/s\t%s%.2f\t\t\n", withOneMore, missed(share < withOneMore), share)
	within("STATUS, p99", statusWithin, p["shim/STATUS/1"]["p99-ms"], 0)
	fits("shim: memory", shimMB, p["shim/memory"]["MB"])
	fits("daemon: memory with 110 pods and 500 networks", daemonMB, p["daemon/full"]["MB"])
	return errors.Join(w.Flush(), p.comparison(out))
}

// comparison writes what no goal is about.
func (p pods) comparison(out io.Writer) error {
	base := p["default/ADD/1"]["p50-ms"]
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nfor comparison\t\t\n")
	fmt.Fprintf(w, "network status: written after the last of 8 pods began\t%.0f ms\t\n", p["native1/status/1"]["p50-ms"])
	waits := p["native1-waits/ADD/1"]["p50-ms"]
	fmt.Fprintf(w, "with waitForNetworkStatus: true: first native network and the pod's status\t%.2f ms\t\n", waits-base)
	fmt.Fprintf(w, "  beside a status that is due anyway\t%.2f ms\t\n", waits-p["default-waits/ADD/1"]["p50-ms"])
	fmt.Fprintf(w, "the API server alone: one write of a status\t%.2f ms\t\n", p["api/status/1"]["p50-ms"])
	fmt.Fprintf(w, "processor time that others on this machine's host took meanwhile\t%.1f %%\t\n", p["machine/stolen"]["%"])
	fmt.Fprintf(w, "shim: VERSION, from start to exit\t%.2f ms\t\n", p["shim/VERSION/1"]["p50-ms"])
	fmt.Fprintf(w, "daemon: memory after its start, and in the moment that 110 pods were added\t%.1f and %.1f MB\t\n", p["daemon/idle"]["MB"], p["daemon/busy"]["MB"])
	return w.Flush()
}

// together is how far the difference of two sides' ADDs may be from the truth,
// in ms.
func (p pods) together(one, other string) float64 {
	return math.Hypot(p[one+"/ADD/1"]["p50-error-ms"], p[other+"/ADD/1"]["p50-error-ms"])
}

func uncertain(by float64) string {
	if by == 0 {
		return ""
	}
	return fmt.Sprintf(" ± %.2f", by)
}

func ms(v float64) string { return fmt.Sprintf("%.1f ms", v) }

// missed marks what is not as wanted.
func missed(so bool) string {
	if so {
		return "! "
	}
	return ""
}
