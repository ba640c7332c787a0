// Package gather reads what a preflight judges from a live cluster: its objects,
// and the facts that the daemons of its nodes report.
package gather

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/preflight"
)

// factsLimit is how long daemons may take to report.
const factsLimit = 2 * time.Minute

// Objects reads the cluster's objects. What cannot be read is one of the
// cluster's problems; the error is about a cluster that does not answer at all.
func Objects(ctx context.Context, m *kube.Migrations) (preflight.Cluster, error) {
	var c preflight.Cluster
	var err error
	if c.Version, err = m.ServerVersion(ctx); err != nil {
		return c, err
	}
	for _, kind := range preflight.Kinds {
		objects, err := m.List(ctx, schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: kind.Resource})
		switch {
		case errors.Is(err, kube.ErrNotFound) && kind.Optional:
			continue
		case err != nil:
			c.Problems = append(c.Problems, err.Error())
			continue
		}
		for i := range objects {
			raw, err := objects[i].MarshalJSON()
			if err == nil {
				err = c.Add(raw)
			}
			if err != nil {
				c.Problems = append(c.Problems, err.Error())
			}
		}
	}
	return c, nil
}

// Facts has the daemons report their nodes' facts and waits for all of them; with
// ports they try the ways between all nodes at these UDP ports, too, which nobody
// else must want meanwhile. Progress is told of what is waited for. A node that
// has not reported when ctx ends, or after two minutes, is one of the cluster's
// problems.
func Facts(ctx context.Context, m *kube.Migrations, c *preflight.Cluster, ports []uint16, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, factsLimit)
	defer cancel()
	f := &follower{m: m, view: m.FollowerView(), progress: progress}
	defer f.view.Follow(ctx)()
	c.Facts = map[string]facts.Node{}
	defer f.taken(c)
	if len(ports) > 0 {
		// First all listen, then all ask.
		asked, err := f.change(ctx, c, func(node string, s *v1alpha1.NodeMigrationSpec) { s.Paths = paths(c, node, ports) })
		if err != nil {
			return err
		}
		if missing := f.wait(ctx, "to listen", func(p v1alpha1.NodeMigration) bool { return p.Status.ObservedGeneration >= asked[p.Name] }, asked); len(missing) > 0 {
			c.Problems = append(c.Problems, absent(missing))
			return nil
		}
	}
	numbers := map[string]int64{}
	asked, err := f.change(ctx, c, func(node string, s *v1alpha1.NodeMigrationSpec) { s.Facts++; numbers[node] = s.Facts })
	if err != nil {
		return err
	}
	missing := f.wait(ctx, "to report its facts", func(p v1alpha1.NodeMigration) bool {
		return p.Status.FactsAsked >= numbers[p.Name] && p.Status.Facts != nil
	}, asked)
	if len(missing) > 0 {
		c.Problems = append(c.Problems, absent(missing))
	}
	collect(c, f.view.Snapshot().NodeMigrations, numbers)
	return nil
}

func absent(nodes []string) string {
	return fmt.Sprintf("no facts of %s: is braid-migrate running there? (kubectl -n braid-system get pods -l app.kubernetes.io/name=braid-migrate -o wide)", strings.Join(nodes, ", "))
}

// paths is what a node shall ask of all others.
func paths(c *preflight.Cluster, node string, ports []uint16) *v1alpha1.PathRequest {
	req := &v1alpha1.PathRequest{}
	for _, p := range ports {
		req.Ports = append(req.Ports, int32(p))
	}
	for _, n := range c.Nodes {
		for _, a := range n.Status.Addresses {
			if n.Name != node && a.Type == corev1.NodeInternalIP {
				req.Peers = append(req.Peers, v1alpha1.PathPeer{Node: n.Name, Address: a.Address})
				break
			}
		}
	}
	return req
}

// A follower asks the daemons and sees what they answer.
type follower struct {
	m        *kube.Migrations
	view     *kube.View
	progress func(string)
}

// change changes what the daemons of all nodes shall do, and returns the
// generations of that.
func (f *follower) change(ctx context.Context, c *preflight.Cluster, edit func(node string, s *v1alpha1.NodeMigrationSpec)) (map[string]int64, error) {
	generations := map[string]int64{}
	for _, node := range c.Nodes {
		part, err := f.m.GetNodeMigration(ctx, node.Name)
		if errors.Is(err, kube.ErrNotFound) {
			part = &v1alpha1.NodeMigration{}
			part.Name = node.Name
			edit(node.Name, &part.Spec)
			part, err = f.m.CreateNodeMigration(ctx, part)
		} else if err == nil {
			spec := *part.Spec.DeepCopy()
			edit(node.Name, &spec)
			part, err = f.m.UpdateNodeMigrationSpec(ctx, part, spec)
		}
		if err != nil {
			return nil, err
		}
		generations[node.Name] = part.Generation
	}
	return generations, nil
}

// taken has the daemons listen no more, and drop what was read, also when ctx is
// over.
func (f *follower) taken(c *preflight.Cluster) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	asked, err := f.change(ctx, c, func(_ string, s *v1alpha1.NodeMigrationSpec) { s.Paths, s.FactsTaken = nil, s.Facts })
	if err != nil {
		c.Problems = append(c.Problems, fmt.Sprintf("the daemons may still listen: %v", err))
		return
	}
	// Until then nobody else gets the ports.
	f.wait(ctx, "to give its ports back", func(p v1alpha1.NodeMigration) bool { return p.Status.ObservedGeneration >= asked[p.Name] }, asked)
}

// wait waits until something holds of all nodes that were asked, and returns
// those of which it does not when ctx ends.
func (f *follower) wait(ctx context.Context, what string, holds func(v1alpha1.NodeMigration) bool, asked map[string]int64) []string {
	said := ""
	for {
		var missing []string
		parts := f.view.Snapshot().NodeMigrations
		for name := range asked {
			if !slices.ContainsFunc(parts, func(p v1alpha1.NodeMigration) bool { return p.Name == name && holds(p) }) {
				missing = append(missing, name)
			}
		}
		slices.Sort(missing)
		if len(missing) == 0 {
			return nil
		}
		if text := fmt.Sprintf("waiting for %s %s", strings.Join(missing, ", "), what); text != said {
			f.progress(text)
			said = text
		}
		select {
		case <-f.view.Changed():
		case <-ctx.Done():
			return missing
		}
	}
}

// collect takes over the facts that are there.
func collect(c *preflight.Cluster, parts []v1alpha1.NodeMigration, numbers map[string]int64) {
	for _, p := range parts {
		if p.Status.Facts == nil || p.Status.FactsAsked < numbers[p.Name] || numbers[p.Name] == 0 {
			continue
		}
		var n facts.Node
		if err := json.Unmarshal(p.Status.Facts.Raw, &n); err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("facts of %s: %v", p.Name, err))
			continue
		}
		c.Facts[p.Name] = n
	}
}
