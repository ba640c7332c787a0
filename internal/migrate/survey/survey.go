// Package survey finds out what a migration has to know of a node: it asks the
// kernel, the runtime and the node's files, and changes none of them.
package survey

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/netns"
)

// Limits of what is collected: facts are kept in an object of the cluster. What
// exceeds one is cut, and Problems says so.
const (
	maxRoutes    = 2000
	maxListeners = 1000
	maxLinks     = 2000
	maxEntries   = 500       // of one directory
	maxText      = 64 << 10  // of one file
	maxRules     = 512 << 10 // of one backend of the firewall
	maxReaches   = 3
	// maxWait is how long one program or one question may take.
	maxWait = 10 * time.Second
)

// Runtime is what is asked of a container runtime; *cri.Client answers it.
type Runtime interface {
	Status(ctx context.Context) (cri.Status, error)
	ListSandboxes(ctx context.Context) ([]cri.Sandbox, error)
}

// Config says where to look.
type Config struct {
	// Name is that of the Node object.
	Name string
	// Root is the host's file tree.
	Root hostexec.Root
	// ConfDir and BinDir are paths of the host. When empty they are those that
	// the runtime names, or else the usual ones.
	ConfDir, BinDir string
	// Runtime may be nil: then nothing is known of networks and sandboxes.
	Runtime Runtime
	// Peers are the other nodes that Paths is about.
	Peers []Peer
	// NS is the node's network namespace; nil for that of the process.
	NS *netns.NS
}

// Collect returns what is known of the node. It never fails as a whole: what
// cannot be read is a sentence in Problems. Everything but the questions to
// other nodes' daemons is asked one after the other, so that a survey is no
// load; how long it takes is bounded.
func Collect(ctx context.Context, c Config) facts.Node {
	s := survey{Config: c, host: hostFiles{root: c.Root}, node: facts.Node{Name: c.Name}}
	all := func() error {
		s.collect(ctx)
		return nil
	}
	if c.NS == nil {
		_ = all()
	} else if err := c.NS.Do(all); err != nil {
		s.problem("%v", err)
	}
	return s.node
}

// survey is a facts.Node in the making. Its methods run in the node's network
// namespace.
type survey struct {
	Config
	host hostFiles
	node facts.Node
}

func (s *survey) problem(format string, args ...any) {
	s.node.Problems = append(s.node.Problems, fmt.Sprintf(format, args...))
}

func (s *survey) collect(ctx context.Context) {
	s.system()
	s.network()
	s.listeners()
	s.sysctls()
	s.firewall(ctx)
	s.features()
	s.cni(ctx)
	s.sandboxes(ctx)
	s.reaches(ctx)
	s.node.Paths = askPaths(ctx, s.Peers)
}

// capped cuts a list, and says so.
func capped[T any](s *survey, what string, list []T, limit int) []T {
	if len(list) <= limit {
		return list
	}
	s.problem("%s are %d: only the first %d are told", what, len(list), limit)
	return list[:limit:limit]
}

// sandboxes are those that the runtime has, by pod and then newest last.
func (s *survey) sandboxes(ctx context.Context) {
	if s.Runtime == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 3*maxWait) // it asks for each
	defer cancel()
	all, err := s.Runtime.ListSandboxes(ctx)
	if err != nil {
		s.problem("sandboxes are not known: %v", err)
		return
	}
	for _, b := range all {
		s.node.Sandboxes = append(s.node.Sandboxes, facts.Sandbox{
			ID: b.ID, Namespace: b.Namespace, Pod: b.Pod, UID: b.UID, Ready: b.Ready,
			HostNetwork: b.HostNetwork, IPs: b.IPs, NetNS: b.NetNS,
		})
	}
	slices.SortFunc(s.node.Sandboxes, func(a, b facts.Sandbox) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ID, b.ID))
	})
}
