package preflight

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"braid.dev/braid/api/v1alpha1"
)

// Severity says what a finding does to a migration.
type Severity string

// The severities, worst first.
const (
	// Blocker: it would fail, or break somebody. It has to be fixed, or accepted
	// by name.
	Blocker Severity = "blocker"
	// Warning: something changes that somebody may rely on.
	Warning Severity = "warning"
	// Fact: good to know, and nothing to do.
	Fact Severity = "fact"
)

func (s Severity) rank() int {
	return slices.Index([]Severity{Blocker, Warning, Fact}, s)
}

// Code names a kind of finding. Codes are stable: scripts rely on them.
type Code string

// Finding is something that a person should know before the migration.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Condition is that of the list in docs/migrate-preflight.md, such as B3.6.
	Condition string `json:"condition"`
	// Subjects are what it is about, as "node node1" or "pod default/web-0".
	Subjects []string `json:"subjects"`
	Message  string   `json:"message"`
	// Evidence is where it was seen.
	Evidence []string `json:"evidence,omitempty"`
	// Fix is the setting, or the step, that removes it.
	Fix string `json:"fix,omitempty"`
	// Accepted says that it would be a blocker, had nobody accepted it.
	Accepted bool `json:"accepted,omitempty"`
}

// Report is the outcome of Check. Its JSON form is a contract.
type Report struct {
	From string `json:"from"`
	To   string `json:"to"`
	// OK says that there is no blocker.
	OK       bool      `json:"ok"`
	Blockers int       `json:"blockers"`
	Warnings int       `json:"warnings"`
	Facts    int       `json:"facts"`
	Findings []Finding `json:"findings"`
	// Clients is what servers are expected to see of their clients while pods of
	// both sides live.
	Clients []v1alpha1.ClientRow `json:"clients"`
}

// Has says whether the report holds a finding of that code.
func (r Report) Has(code Code) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Code == code })
}

// report makes a report of findings: those that say the same of several
// subjects become one, and the worst come first.
func report(from, to Side, findings []Finding, o Options) Report {
	r := Report{From: from.Profile, To: to.Profile, Findings: merge(findings), Clients: Clients(from, to, o.PreserveSource)}
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Severity == Blocker && slices.Contains(o.Accept, string(f.Code)) {
			f.Severity, f.Accepted = Warning, true
		}
		switch f.Severity {
		case Blocker:
			r.Blockers++
		case Warning:
			r.Warnings++
		case Fact:
			r.Facts++
		}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(a.Severity.rank(), b.Severity.rank())
	})
	r.OK = r.Blockers == 0
	return r
}

func merge(findings []Finding) []Finding {
	type key struct {
		code         Code
		severity     Severity
		message, fix string
	}
	out := []Finding{}
	at := map[key]int{}
	seen := map[seenLine]bool{}
	for _, f := range findings {
		k := key{f.Code, f.Severity, f.Message, f.Fix}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			first := f
			first.Subjects, first.Evidence = nil, nil
			out = append(out, first)
		}
		out[i].Subjects = addNew(seen, i, false, out[i].Subjects, f.Subjects)
		out[i].Evidence = addNew(seen, i, true, out[i].Evidence, f.Evidence)
	}
	return out
}

// seenLine is a line that a finding has already.
type seenLine struct {
	finding  int
	evidence bool
	line     string
}

func addNew(seen map[seenLine]bool, finding int, evidence bool, list, more []string) []string {
	for _, s := range more {
		if id := (seenLine{finding, evidence, s}); !seen[id] {
			seen[id] = true
			list = append(list, s)
		}
	}
	return list
}

func appendNew(list []string, more ...string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// maxShown is how many subjects and lines of evidence text shows of a finding;
// JSON has all.
const maxShown = 6

// Fprint writes the report as a person reads it.
func (r Report) Fprint(w io.Writer) error {
	var b strings.Builder
	for _, f := range r.Findings {
		f.fprint(&b)
	}
	if len(r.Clients) > 0 {
		b.WriteString("While pods of both are there, servers see as client:\n")
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range r.Clients {
			fmt.Fprintf(tw, "  %s → %s\t%s\t%s\n", row.From, row.To, row.Where, row.Saw)
		}
		tw.Flush()
	}
	verdict := "nothing is in the way"
	if !r.OK {
		verdict = "not yet"
	}
	fmt.Fprintf(&b, "%s → %s: %s (%d blockers, %d warnings, %d facts)\n", r.From, r.To, verdict, r.Blockers, r.Warnings, r.Facts)
	_, err := io.WriteString(w, b.String())
	return err
}

func (f Finding) fprint(b *strings.Builder) {
	accepted := ""
	if f.Accepted {
		accepted = ", accepted"
	}
	fmt.Fprintf(b, "%s %s [%s%s] %s\n", f.Severity, f.Code, f.Condition, accepted, shown(f.Subjects))
	fmt.Fprintf(b, "    %s\n", f.Message)
	for i, line := range f.Evidence {
		if i == maxShown {
			fmt.Fprintf(b, "    - and %d more\n", len(f.Evidence)-maxShown)
			break
		}
		fmt.Fprintf(b, "    - %s\n", line)
	}
	if f.Fix != "" {
		fmt.Fprintf(b, "    fix: %s\n", f.Fix)
	}
}

func shown(subjects []string) string {
	if len(subjects) > maxShown {
		return fmt.Sprintf("%s and %d more", strings.Join(subjects[:maxShown], ", "), len(subjects)-maxShown)
	}
	return strings.Join(subjects, ", ")
}
