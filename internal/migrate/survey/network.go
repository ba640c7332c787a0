package survey

import (
	"errors"

	"braid.dev/braid/internal/migrate/facts"
)

// Network returns the links and routes of the current namespace, and nothing
// else of a node: it costs a few requests of netlink.
func Network() ([]facts.Link, []facts.Route, error) {
	var s survey
	s.network()
	var errs []error
	for _, problem := range s.node.Problems {
		errs = append(errs, errors.New(problem))
	}
	return s.node.Links, s.node.Routes, errors.Join(errs...)
}
