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

// Facts has the daemons report their nodes' facts and waits for all of them.
// Progress is told of what is waited for. A node that has not reported when ctx
// ends, or after two minutes, is one of the cluster's problems.
func Facts(ctx context.Context, m *kube.Migrations, c *preflight.Cluster, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, factsLimit)
	defer cancel()
	asked, err := ask(ctx, m, c)
	if err != nil {
		return err
	}
	view := m.FollowerView()
	following, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		view.Run(following) // it ends when it is stopped, without another reason
	}()
	defer func() { stop(); <-ended }()
	c.Facts = map[string]facts.Node{}
	said := ""
	for {
		missing := collect(c, view.Snapshot().NodeMigrations, asked)
		if len(missing) == 0 {
			return nil
		}
		if text := "waiting for the facts of " + strings.Join(missing, ", "); text != said {
			progress(text)
			said = text
		}
		select {
		case <-view.Changed():
		case <-ctx.Done():
			c.Problems = append(c.Problems, fmt.Sprintf(
				"no facts of %s: is braid-migrate running there? (kubectl -n braid-system get pods -l app=braid-migrate -o wide)", strings.Join(missing, ", ")))
			return nil
		}
	}
}

// ask asks every node once more. It returns what their answers have to name.
func ask(ctx context.Context, m *kube.Migrations, c *preflight.Cluster) (map[string]int64, error) {
	have, err := m.ListNodeMigrations(ctx)
	if err != nil {
		return nil, err
	}
	asked := map[string]int64{}
	for _, node := range c.Nodes {
		i := slices.IndexFunc(have, func(p v1alpha1.NodeMigration) bool { return p.Name == node.Name })
		if i < 0 {
			part := &v1alpha1.NodeMigration{Spec: v1alpha1.NodeMigrationSpec{Facts: 1}}
			part.Name = node.Name
			if _, err := m.CreateNodeMigration(ctx, part); err != nil && !errors.Is(err, kube.ErrExists) {
				return nil, err
			}
			asked[node.Name] = 1
			continue
		}
		spec := have[i].Spec
		spec.Facts++
		if _, err := m.UpdateNodeMigrationSpec(ctx, &have[i], spec); err != nil {
			return nil, err
		}
		asked[node.Name] = spec.Facts
	}
	return asked, nil
}

// collect takes over the facts that are there, and returns whose are missing.
func collect(c *preflight.Cluster, parts []v1alpha1.NodeMigration, asked map[string]int64) (missing []string) {
	for name, number := range asked {
		i := slices.IndexFunc(parts, func(p v1alpha1.NodeMigration) bool { return p.Name == name })
		if i < 0 || parts[i].Status.FactsAsked < number || parts[i].Status.Facts == nil {
			missing = append(missing, name)
			continue
		}
		var n facts.Node
		if err := json.Unmarshal(parts[i].Status.Facts.Raw, &n); err != nil {
			c.Problems = append(c.Problems, fmt.Sprintf("facts of %s: %v", name, err))
			continue
		}
		c.Facts[name] = n
	}
	slices.Sort(missing)
	return missing
}
