package leftover

import (
	"context"
	"fmt"
	"strings"

	"braid.dev/braid/internal/migrate/leftover/spec"
)

// readSets returns the names of the sets of ipset, if the network may have any. A
// host without the program has none that anybody could have made there.
func readSets(ctx context.Context, h Host, l spec.Spec) ([]string, error) {
	if len(l.IPSets) == 0 {
		return nil, nil
	}
	out, err := h.Run(ctx, nil, "ipset", "list", "-n")
	if missingProgram(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ipset list: %w", err)
	}
	return strings.Fields(string(out)), nil
}

func findSets(sets []string, l spec.Spec, use InUse, v living) []finding {
	var found []finding
	for _, name := range sets {
		if !matchAny(l.IPSets, name) {
			continue
		}
		reason := v.network()
		if matchAny(use.Other.IPSets, name) {
			reason = both(use.Other)
		}
		found = append(found, finding{kind: "ipset", name: name, inUse: reason, stage: inSets,
			remove: func(ctx context.Context, h *hands) error {
				// The kernel refuses to destroy a set that a rule still looks into.
				if _, err := h.host.Run(ctx, nil, "ipset", "destroy", name); err != nil {
					return fmt.Errorf("ipset destroy %s: %w", name, err)
				}
				return nil
			}})
	}
	return found
}

func othersSets(sets []string, l, other spec.Spec, s *snapshot) {
	for _, name := range sets {
		if !matchAny(l.IPSets, name) && !matchAny(other.IPSets, name) && !strings.HasPrefix(name, "KUBE-") {
			s.add("ipset", name)
		}
	}
}
