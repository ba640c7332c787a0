package round

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"braid.dev/braid/api/v1alpha1"
)

// Fprint writes a summary for people: how many questions were asked, which had
// no answer, and whose addresses servers saw.
func Fprint(w io.Writer, s v1alpha1.RoundSummary) error {
	var b strings.Builder
	fmt.Fprintf(&b, "round %d", s.Round)
	if s.When != "" {
		fmt.Fprintf(&b, ", %s", s.When)
	}
	switch {
	case s.Pending:
		fmt.Fprintf(&b, ": answers are missing\n")
	case s.Failed == 0:
		fmt.Fprintf(&b, ": %d asked, all answered\n", s.Asked)
	default:
		fmt.Fprintf(&b, ": %d asked, %d failed\n", s.Asked, s.Failed)
	}
	for _, f := range s.Failures {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	if more := s.Failed - len(s.Failures); more > 0 && !s.Pending {
		fmt.Fprintf(&b, "  and %d more\n", more)
	}
	if len(s.Clients) > 0 {
		t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "FROM\tTO\tWHERE\tBY\tSERVERS SAW\tREQUESTS")
		for _, c := range s.Clients {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", c.From, c.To, c.Where, c.By, c.Saw, c.Count)
		}
		t.Flush() // a strings.Builder takes everything
	}
	_, err := io.WriteString(w, b.String())
	return err
}
