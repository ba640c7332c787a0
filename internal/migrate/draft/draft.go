// Package draft makes of what is known of a cluster, and of what a person wants,
// the Migration that would do it, with the verdict on it. It is a pure function:
// the same for a live cluster and for a directory of dumps.
package draft

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile"
	"braid.dev/braid/internal/migrate/profile/known"
)

// Wish is what a person wants.
type Wish struct {
	// From and To are names of profiles. From is detected when it is empty.
	From, To string
	// Manifests are the objects that install the target, if it is not there yet.
	Manifests []unstructured.Unstructured
	// ConfFile and Conf are the target's configuration; empty for the profile's.
	ConfFile, Conf string
	// Spec has everything else: strategy, probes, preserving the source.
	Spec v1alpha1.MigrationSpec
	// Accept are codes of blockers that are accepted.
	Accept []string
	// Images are what the migration itself needs.
	Images []string
}

// Draft is a migration that nobody has begun.
type Draft struct {
	Migration v1alpha1.Migration
	From, To  preflight.Side
	// Forth is the verdict on the migration, Back that on its rollback.
	Forth, Back preflight.Report
	// Changes are what the manifests need so that they take no pod yet.
	Changes []profile.Change
}

// Make makes the draft. The error says what of the wish makes no sense for this
// cluster; what stands in its way is in the reports.
func Make(c preflight.Cluster, w Wish) (Draft, error) {
	var d Draft
	to, err := known.Profile(w.To)
	if err != nil {
		return d, err
	}
	from, err := source(c, w)
	if err != nil {
		return d, err
	}
	d.From, _ = from.Detect(c)
	if d.To, err = target(c, to, w); err != nil {
		return d, err
	}
	conf := profile.Conf{File: w.ConfFile, Text: w.Conf}
	if conf.File == "" {
		if conf, err = to.Conf(d.To, d.From); err != nil {
			return d, fmt.Errorf("configuration of %s: %w", w.To, err)
		}
	}
	d.To.ConfFile = conf.File
	if l, err := profile.ParseConf(conf.Text); err == nil {
		d.To.Network = l.Name
	}
	d.Changes = to.Latent(w.Manifests)
	d.Migration = migration(d, conf, w)
	o := preflight.Options{
		PreserveSource: w.Spec.PreserveSource, Pods: w.Spec.Strategy.Pods, Batch: w.Spec.Strategy.Batch,
		EvictTimeout: w.Spec.Strategy.EvictTimeout.Duration, StepTimeout: w.Spec.Strategy.StepTimeout.Duration,
		Images: w.Images, Accept: w.Accept, Brings: len(w.Manifests) > 0,
	}
	d.Forth, d.Back = preflight.Both(c, d.From, d.To, o)
	return d, nil
}

// source is the profile of the network that the pods are on.
func source(c preflight.Cluster, w Wish) (profile.Profile, error) {
	if w.From != "" {
		return known.Profile(w.From)
	}
	var best profile.Profile
	score := 0
	for _, p := range known.All() {
		if _, s := p.Detect(c); s > score && p.Name() != w.To {
			best, score = p, s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("which CNI the cluster's pods are on cannot be told: name it with --from (%s)", strings.Join(known.Names(), ", "))
	}
	return best, nil
}

// target is what is known of the network to come: by its manifests, or because
// it is there already.
func target(c preflight.Cluster, p profile.Profile, w Wish) (preflight.Side, error) {
	if len(w.Manifests) == 0 {
		side, score := p.Detect(c)
		if score == 0 {
			return side, fmt.Errorf("%s is not in the cluster: give the manifests that install it with --manifests", w.To)
		}
		return side, nil
	}
	var m preflight.Cluster
	for _, o := range w.Manifests {
		raw, err := o.MarshalJSON()
		if err == nil {
			err = m.Add(raw)
		}
		if err != nil {
			return preflight.Side{}, fmt.Errorf("manifests: %w", err)
		}
	}
	// Whose ranges come from the nodes needs them to know its own.
	m.Nodes = c.Nodes
	side, score := p.Detect(m)
	if score == 0 {
		return side, fmt.Errorf("the manifests do not install %s", w.To)
	}
	return side, nil
}

func migration(d Draft, conf profile.Conf, w Wish) v1alpha1.Migration {
	m := v1alpha1.Migration{Spec: w.Spec}
	m.APIVersion, m.Kind = v1alpha1.GroupVersion, "Migration"
	m.Name = d.From.Profile + "-to-" + d.To.Profile
	m.Spec.From = network(d.From, profile.Conf{File: d.From.ConfFile})
	m.Spec.To = network(d.To, conf)
	m.Spec.Goal = cmp.Or(m.Spec.Goal, v1alpha1.Target)
	return m
}

func network(s preflight.Side, conf profile.Conf) v1alpha1.Network {
	n := v1alpha1.Network{Profile: s.Profile, ConfFile: conf.File, Conf: conf.Text, Devices: slices.Clone(s.Links)}
	for _, p := range s.PodCIDRs {
		n.PodCIDRs = append(n.PodCIDRs, p.String())
	}
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings, numbers and prefixes always have a JSON form
	}
	n.Detected = &runtime.RawExtension{Raw: raw}
	return n
}

// Plan is what the draft's migration would do to every node and pod.
func (d Draft) Plan(c preflight.Cluster, leader string) migrate.Plan {
	return migrate.MakePlan(migrate.World{Migration: d.Migration, Nodes: c.Nodes, Pods: c.Pods, Leader: leader}, c.PDBs)
}
