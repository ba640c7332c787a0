package leftover

import (
	"fmt"
	"slices"
)

// A snapshot is everything that was looked at and is not the network's own, as
// text: in each domain, such as one chain, the lines in their order.
type snapshot struct {
	domains map[string]*domain
	names   []string // of the domains, in the order in which they were met
}

type domain struct {
	lines []string
	// grows says that lines come without anybody's doing that matters, as links do.
	grows bool
}

func newSnapshot() *snapshot { return &snapshot{domains: map[string]*domain{}} }

func (s *snapshot) domain(name string) *domain {
	d, ok := s.domains[name]
	if !ok {
		d = &domain{}
		s.domains[name] = d
		s.names = append(s.names, name)
	}
	return d
}

// add adds a line of a domain in which every change is reported.
func (s *snapshot) add(name, line string) {
	d := s.domain(name)
	d.lines = append(d.lines, line)
}

// addOnly adds a line of a domain in which new lines are not reported: nothing
// in this package makes any.
func (s *snapshot) addOnly(name, line string) {
	d := s.domain(name)
	d.grows = true
	d.lines = append(d.lines, line)
}

func (s *snapshot) count() int {
	n := 0
	for _, d := range s.domains {
		n += len(d.lines)
	}
	return n
}

// changes says what is different in a later snapshot.
func (s *snapshot) changes(later *snapshot) []string {
	var out []string
	for _, name := range s.names {
		out = append(out, s.domains[name].changes(name, later.domain(name))...)
	}
	for _, name := range later.names {
		if s.domains[name] == nil {
			out = append(out, (&domain{}).changes(name, later.domains[name])...)
		}
	}
	return out
}

func (d *domain) changes(name string, later *domain) []string {
	was, is := subtract(d.lines, later.lines), subtract(later.lines, d.lines)
	var out []string
	for _, line := range was {
		out = append(out, fmt.Sprintf("%s: gone: %s", name, line))
	}
	if d.grows || later.grows {
		return out
	}
	for _, line := range is {
		out = append(out, fmt.Sprintf("%s: new: %s", name, line))
	}
	if !slices.Equal(subtract(d.lines, was), subtract(later.lines, is)) {
		out = append(out, name+": in another order")
	}
	return out
}

// subtract returns lines without those of other, each as often as it is there.
func subtract(lines, other []string) []string {
	n := map[string]int{}
	for _, l := range other {
		n[l]++
	}
	var out []string
	for _, l := range lines {
		if n[l] > 0 {
			n[l]--
			continue
		}
		out = append(out, l)
	}
	return out
}
