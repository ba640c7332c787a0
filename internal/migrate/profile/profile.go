// Package profile says what has to be known of a CNI to move a cluster away
// from it or to it: how it is recognised, what its configuration is, when it
// serves on a node, and what it leaves there.
//
// Each profile is a directory below this one; package known has the table of
// them. A profile only judges data. It reaches a node through a NodeView.
package profile

import (
	"context"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/internal/migrate/facts"
	"braid.dev/braid/internal/migrate/leftover/spec"
	"braid.dev/braid/internal/migrate/preflight"
)

// Profile is what is known of one CNI.
type Profile interface {
	// Name is such as "flannel".
	Name() string
	// Detect reads the CNI's settings from a cluster's objects and its nodes' facts,
	// or, for a CNI that is yet to be installed, from the manifests alone. The score
	// says how sure it is that the CNI is there; 0 is not at all.
	Detect(c preflight.Cluster) (side preflight.Side, score int)
	// Conf is the configuration that nodes get when the cluster moves from one side
	// to this one.
	Conf(to, from preflight.Side) (Conf, error)
	// Latent lists what has to be changed in a user's manifests so that installing
	// them gives no pod to the CNI yet, and takes nothing from the other.
	Latent(objects []unstructured.Unstructured) []Change
	// Ready says Yes when the CNI's datapath serves on the node, and else what is
	// missing.
	Ready(ctx context.Context, n NodeView, s preflight.Side) string
	// Leftovers is what the CNI leaves on a node.
	Leftovers(s preflight.Side) spec.Spec
}

// Ready is what Profile.Ready says of a node where all is well.
const Ready = "yes"

// Scores that profiles give. Settings in a cluster may be forgotten ones; the
// configuration that a runtime has loaded is not.
const (
	ScoreTrace    = 10  // a link, a file, an annotation
	ScoreSettings = 30  // a ConfigMap or a custom resource
	ScoreWorkload = 40  // a DaemonSet
	ScoreConf     = 20  // a configuration in a conf dir
	ScoreLoaded   = 100 // the configuration that a runtime takes
)

// Conf is a configuration for the conf dir.
type Conf struct {
	// File is its name, Text its JSON. Text is empty when every node has its own.
	File, Text string
}

// Change is one setting that has to be another.
type Change struct {
	// Object is Kind/namespace/name.
	Object string `json:"object"`
	// Setting is as the object has it, such as cni-exclusive. Have and Want are its
	// values; an empty Have is one that is not set.
	Setting string `json:"setting"`
	Have    string `json:"have,omitempty"`
	Want    string `json:"want"`
	// Value is how the CNI's users write it, such as cni.exclusive=false of a chart.
	Value string `json:"value,omitempty"`
	// Why is what happens otherwise.
	Why string `json:"why"`
}

func (c Change) String() string {
	have := c.Have
	if have == "" {
		have = "(not set)"
	}
	s := fmt.Sprintf("%s: %s is %s, must be %s", c.Object, c.Setting, have, c.Want)
	if c.Value != "" {
		s += " (" + c.Value + ")"
	}
	return s + ": " + c.Why
}

// NodeView is how a profile looks at the node that it is on.
type NodeView interface {
	// Links are the host's.
	Links() ([]facts.Link, error)
	Routes() ([]facts.Route, error)
	// ReadFile reads a file of the host by its absolute path. One that is not there
	// is fs.ErrNotExist.
	ReadFile(path string) ([]byte, error)
	// Plugin says whether the runtime's bin dir has that program.
	Plugin(name string) bool
	// Get asks a URL from the host's network and returns the status.
	Get(ctx context.Context, url string, header map[string]string) (status int, err error)
}

// List is a network configuration list.
type List struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []Plugin `json:"plugins"`
}

// Plugin is one plugin's configuration, as far as a profile looks at it.
type Plugin struct {
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge,omitempty"`
	Master       string          `json:"master,omitempty"`
	IPMasq       bool            `json:"ipMasq,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	DataDir      string          `json:"dataDir,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	Delegate     *Plugin         `json:"delegate,omitempty"`
	IPAM         IPAM            `json:"ipam"`
}

// IPAM is the address delegate's part of a plugin's configuration.
type IPAM struct {
	Type    string    `json:"type"`
	Subnet  string    `json:"subnet,omitempty"`
	Ranges  [][]Range `json:"ranges,omitempty"`
	DataDir string    `json:"dataDir,omitempty"`
}

// Range is a range of host-local.
type Range struct {
	Subnet string `json:"subnet"`
}

// ParseConf reads a configuration, a list or a single one.
func ParseConf(text string) (List, error) {
	var l struct {
		List
		Plugin
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return List{}, fmt.Errorf("configuration: %w", err)
	}
	if len(l.Plugins) == 0 && l.Type != "" {
		l.Plugins = []Plugin{l.Plugin}
	}
	if len(l.Plugins) == 0 {
		return List{}, fmt.Errorf("configuration %q: no plugins", l.Name)
	}
	return l.List, nil
}

// Has reports whether the list has a plugin of that type.
func (l List) Has(kind string) bool {
	for _, p := range l.Plugins {
		if p.Type == kind {
			return true
		}
	}
	return false
}

// Types are those of all plugins in their order, with their delegates and their
// address delegates behind them.
func (l List) Types() []string {
	var types []string
	for _, p := range l.Plugins {
		types = append(types, p.Type)
		if p.Delegate != nil && p.Delegate.Type != "" {
			types = append(types, p.Delegate.Type)
		}
		if p.IPAM.Type != "" {
			types = append(types, p.IPAM.Type)
		}
	}
	return types
}
