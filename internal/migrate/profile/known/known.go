// Package known is the table of the profiles.
package known

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/bridge"
	"braid.dev/braid/internal/migrate/profile/calico"
	"braid.dev/braid/internal/migrate/profile/cilium"
	"braid.dev/braid/internal/migrate/profile/flannel"
	"braid.dev/braid/internal/migrate/profile/generic"
	"braid.dev/braid/internal/migrate/profile/kindnet"
)

// All returns all profiles. The generic one is the last.
func All() []profile.Profile {
	return []profile.Profile{
		flannel.Profile{}, cilium.Profile{}, calico.Profile{}, kindnet.Profile{}, bridge.Profile{}, generic.Profile{},
	}
}

// Names are those of all profiles.
func Names() []string {
	var names []string
	for _, p := range All() {
		names = append(names, p.Name())
	}
	return names
}

// Profile is the one of that name.
func Profile(name string) (profile.Profile, error) {
	for _, p := range All() {
		if p.Name() == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no profile %q: there are %s", name, strings.Join(Names(), ", "))
}

// Candidate is a CNI that a cluster seems to have.
type Candidate struct {
	Side  preflight.Side
	Score int
}

// Detect lists the CNIs that the cluster seems to have, the likeliest first:
// the one whose configuration the runtimes take.
func Detect(c preflight.Cluster) []Candidate {
	var out []Candidate
	for _, p := range All() {
		if side, score := p.Detect(c); score > 0 {
			out = append(out, Candidate{side, score})
		}
	}
	slices.SortStableFunc(out, func(a, b Candidate) int { return cmp.Compare(b.Score, a.Score) })
	return out
}
