// Command bench reads the output of go test -bench and ends it with two tables:
// what Braid's drivers cost beside the reference plugins, and beside the bare
// kernel requests; and what a pod's networks cost its runtime with Braid, and
// with the reference plugins called directly.
//
// Benchmarks that end in /driver, /reference and /netlink are the columns of
// one row. Of several runs of a benchmark (-count) the median counts.
// BenchmarkPods of internal/e2e makes the second table.
package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// The goals of the table, as shares of the other's time.
const (
	ofReference = 0.35
	ofNetlink   = 1.5
)

// report passes in on to out and adds the table. A benchmark that failed is an
// error, and so is output without any to compare.
func report(in io.Reader, out io.Writer) error {
	rows, whole := map[string]row{}, pods{}
	failed, pkg := false, ""
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(out, line)
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = path.Base(p)
		}
		failed = failed || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL")
		whole.read(line)
		if m, ok := parse(line); ok {
			name := strings.Trim(pkg+"/"+m.name, "/")
			if rows[name] == nil {
				rows[name] = row{}
			}
			rows[name][m.variant] = append(rows[name][m.variant], m.each)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if len(rows) == 0 && len(whole) == 0 {
		return errors.New("no benchmark in the input that has a table")
	}
	if err := table(out, rows); err != nil {
		return err
	}
	if err := whole.table(out); err != nil {
		return err
	}
	if failed {
		return errors.New("a benchmark failed")
	}
	return nil
}

// row holds the times of every variant.
type row map[string][]time.Duration

// measured is one line of output.
type measured struct {
	name    string // between Benchmark… and the variant, may be empty
	variant string
	each    time.Duration
}

var result = regexp.MustCompile(`^Benchmark\w+(?:/(\S+))?/(driver|reference|netlink)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op`)

func parse(line string) (measured, bool) {
	m := result.FindStringSubmatch(line)
	if m == nil {
		return measured{}, false
	}
	ns, err := strconv.ParseFloat(m[3], 64)
	return measured{m[1], m[2], time.Duration(ns)}, err == nil
}

// table writes a row for every benchmark of a driver that has something beside
// it. A package may measure the bare requests once for all its rows.
func table(out io.Writer, rows map[string]row) error {
	if len(rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\nattach + detach\tBraid\treference\tbare netlink\tof reference\tof netlink\t\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		driver, ok := median(r["driver"])
		if !ok {
			continue
		}
		pkg, _, _ := strings.Cut(name, "/")
		reference, _ := median(r["reference"])
		bare, ok := median(r["netlink"])
		if !ok {
			bare, _ = median(rows[pkg]["netlink"])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", name, show(driver), show(reference), show(bare),
			share(driver, reference, ofReference), share(driver, bare, ofNetlink))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "medians; goals: at most %.2f of the reference and %.1f of bare netlink; ! is more\n", ofReference, ofNetlink)
	return nil
}

func median(all []time.Duration) (time.Duration, bool) {
	if len(all) == 0 {
		return 0, false
	}
	slices.SortFunc(all, cmp.Compare)
	return all[len(all)/2], true
}

func show(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

func share(d, of time.Duration, goal float64) string {
	if of == 0 {
		return "-"
	}
	ratio := float64(d) / float64(of)
	if ratio > goal {
		return fmt.Sprintf("! %.2f", ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}
