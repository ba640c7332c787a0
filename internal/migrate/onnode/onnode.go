// Package onnode brings together, on a node, what profiles know of CNIs and
// what the kernel, the runtime and the host's files say.
package onnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/known"
	"braid.dev/braid/internal/migrate/survey"
)

// Node is the node that this process is on.
type Node struct {
	Name string
	// Root is where the host's file tree is.
	Root hostexec.Root
	// ConfDir and BinDirs are paths of the host.
	ConfDir string
	BinDirs []string
	Runtime survey.Runtime
}

// Side is what is known of a network of a migration.
func Side(n v1alpha1.Network) (preflight.Side, error) {
	side := preflight.Side{Profile: n.Profile, ConfFile: n.ConfFile, Links: n.Devices}
	if n.Detected != nil {
		if err := json.Unmarshal(n.Detected.Raw, &side); err != nil {
			return side, fmt.Errorf("profile %s: what was detected: %w", n.Profile, err)
		}
	}
	side.PodCIDRs = nil
	for _, text := range n.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return side, fmt.Errorf("profile %s: pod CIDR %q: %w", n.Profile, text, err)
		}
		side.PodCIDRs = append(side.PodCIDRs, p)
	}
	return side, nil
}

// Ready returns nil when the datapath of a network serves on this node.
func (n Node) Ready(ctx context.Context, network v1alpha1.Network) error {
	side, err := Side(network)
	if err != nil {
		return err
	}
	p, err := known.Profile(network.Profile)
	if err != nil {
		return err
	}
	if text := p.Ready(ctx, n.view(), side); text != profile.Ready {
		return errors.New(text)
	}
	return nil
}

// Audit lists what a network has left on this node.
func (n Node) Audit(ctx context.Context, network, other v1alpha1.Network, sandboxes []facts.Sandbox) (v1alpha1.LeftoverReport, error) {
	return n.leftovers(ctx, leftover.Audit, network, other, sandboxes)
}

// Clean removes what a network has left on this node, and lists what it could
// not remove.
func (n Node) Clean(ctx context.Context, network, other v1alpha1.Network, sandboxes []facts.Sandbox) (v1alpha1.LeftoverReport, error) {
	return n.leftovers(ctx, leftover.Clean, network, other, sandboxes)
}

type work func(context.Context, leftover.Node, spec.Spec, leftover.InUse) (v1alpha1.LeftoverReport, error)

func (n Node) leftovers(ctx context.Context, do work, network, other v1alpha1.Network, sandboxes []facts.Sandbox) (v1alpha1.LeftoverReport, error) {
	ours, agents, err := n.spec(network)
	if err != nil {
		return v1alpha1.LeftoverReport{}, err
	}
	theirs, _, err := n.spec(other)
	if err != nil {
		return v1alpha1.LeftoverReport{}, err
	}
	use := leftover.InUse{Sandboxes: sandboxes, Agents: running(agents, sandboxes), Other: theirs}
	return do(ctx, leftover.Node{Root: n.Root.Path("/"), Host: n.Root}, ours, use)
}

// spec is what a network leaves, and the names of its agents.
func (n Node) spec(network v1alpha1.Network) (s spec.Spec, agents []string, err error) {
	side, err := Side(network)
	if err != nil {
		return s, nil, err
	}
	p, err := known.Profile(network.Profile)
	if err != nil {
		return s, nil, err
	}
	return p.Leftovers(side).In(n.ConfDir), side.Workloads, nil
}

// running are the sandboxes of a network's own workloads: as long as these run
// they would make again what is removed.
func running(workloads []string, sandboxes []facts.Sandbox) []string {
	var list []string
	for _, w := range workloads {
		// DaemonSet/kube-flannel/kube-flannel-ds
		parts := strings.Split(w, "/")
		if len(parts) != 3 || parts[0] != "DaemonSet" {
			continue
		}
		for _, s := range sandboxes {
			if s.Ready && s.Namespace == parts[1] && strings.HasPrefix(s.Pod, parts[2]+"-") && !strings.Contains(s.Pod[len(parts[2])+1:], "-") {
				list = append(list, "pod "+s.Namespace+"/"+s.Pod)
			}
		}
	}
	return list
}

// Facts are all that is known of the node, with the ways to its peers.
func (n Node) Facts(ctx context.Context, paths v1alpha1.PathRequest) facts.Node {
	c := survey.Config{Name: n.Name, Root: n.Root, ConfDir: n.ConfDir, BinDir: n.BinDirs[0], Runtime: n.Runtime}
	for _, p := range paths.Peers {
		addr, err := netip.ParseAddr(p.Address)
		if err != nil {
			continue // whoever asks finds the way missing
		}
		peer := survey.Peer{Node: p.Node, Addr: addr}
		for _, port := range paths.Ports {
			peer.Ports = append(peer.Ports, uint16(port))
		}
		c.Peers = append(c.Peers, peer)
	}
	return survey.Collect(ctx, c)
}

// Echo answers other nodes at a UDP port, on all addresses, until ctx ends.
func (n Node) Echo(ctx context.Context, port uint16) error {
	return survey.Echo(ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
}

// view is the node as profiles look at it. Its links and routes are read once,
// when they are first asked for.
type view struct {
	Node
	network func() ([]facts.Link, []facts.Route, error)
}

func (n Node) view() view {
	type seen struct {
		links  []facts.Link
		routes []facts.Route
		err    error
	}
	look := sync.OnceValue(func() seen {
		links, routes, err := survey.Network()
		return seen{links, routes, err}
	})
	return view{n, func() ([]facts.Link, []facts.Route, error) { s := look(); return s.links, s.routes, s.err }}
}

func (v view) Links() ([]facts.Link, error) {
	links, _, err := v.network()
	return links, err
}

func (v view) Routes() ([]facts.Route, error) {
	_, routes, err := v.network()
	return routes, err
}

func (v view) ReadFile(path string) ([]byte, error) { return os.ReadFile(v.Root.Path(path)) }

func (v view) Plugin(name string) bool {
	return slices.ContainsFunc(v.BinDirs, func(dir string) bool {
		info, err := os.Lstat(v.Root.Path(filepath.Join(dir, name)))
		return err == nil && !info.IsDir()
	})
}

func (v view) Get(ctx context.Context, url string, header map[string]string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}
