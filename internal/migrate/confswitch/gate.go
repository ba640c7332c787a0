package confswitch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/plan"
)

// gateConf is the configuration of a gate, as the runtime reads it. It has the
// name and the version of the network that is to come: what the runtime
// remembers of its pods is then right also after the gate.
type gateConf struct {
	CNIVersion  string          `json:"cniVersion,omitempty"`
	CNIVersions json.RawMessage `json:"cniVersions,omitempty"`
	Name        string          `json:"name"`
	// DisableCheck and DisableGC keep runtimes from asking what the gate could
	// not answer: a GC at the start of CRI-O is for one network only.
	DisableCheck bool         `json:"disableCheck"`
	DisableGC    bool         `json:"disableGC"`
	Plugins      []gatePlugin `json:"plugins"`
}

type gatePlugin struct {
	Type string `json:"type"`
	// Capabilities are those of both networks: a runtime passes no others, and
	// the gate passes on to each plugin what that one declares.
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	Switch       gate            `json:"switch"`
}

// gate is what braid-cni reads, see its type of the same name, and what this
// package finds out its state from.
type gate struct {
	From     json.RawMessage `json:"from"`
	To       json.RawMessage `json:"to"`
	Admit    string          `json:"admit"`
	Probes   string          `json:"probes"`
	Message  string          `json:"message,omitempty"`
	CacheDir string          `json:"cacheDir,omitempty"`
	// Migration and State are not for braid-cni.
	Migration string                `json:"migration"`
	State     v1alpha1.RuntimeState `json:"state"`
}

// supported are the versions of braid-cni.
var supported = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// gate writes the configuration of a gate.
func (w World) gate(want v1alpha1.RuntimeState) ([]byte, error) {
	goal, other := w.conf(sideOf(want)), w.conf(sideOf(want).Other())
	to, toNet, err := asList(goal)
	if err != nil {
		return nil, err
	}
	if len(other.Data) == 0 {
		return nil, fmt.Errorf("the network that is to be left has no configuration on this node: no %s, and none in the Migration", other.File)
	}
	from, fromNet, err := asList(other)
	if err != nil {
		return nil, err
	}
	if to, toNet, err = w.through(to, toNet); err != nil {
		return nil, err
	}
	var head struct {
		CNIVersion  string          `json:"cniVersion"`
		CNIVersions json.RawMessage `json:"cniVersions"`
	}
	if err := json.Unmarshal(to, &head); err != nil {
		return nil, err
	}
	if !slices.Contains(supported, toNet.CNIVersion) {
		return nil, fmt.Errorf("%s: cniVersion %s, braid-cni knows %q", goal.File, toNet.CNIVersion, supported)
	}
	conf := gateConf{
		CNIVersion: head.CNIVersion, CNIVersions: head.CNIVersions, Name: toNet.Name, DisableCheck: true, DisableGC: true,
		Plugins: []gatePlugin{{Type: plan.OwnType, Capabilities: capabilities(fromNet, toNet), Switch: gate{
			From: from, To: to, Admit: admit(want), Probes: w.Probes, Message: w.Message, CacheDir: w.CacheDir,
			Migration: w.Migration, State: want,
		}}},
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	return append(text, '\n'), err
}

func admit(s v1alpha1.RuntimeState) string {
	if s == v1alpha1.RuntimeOpenToTarget || s == v1alpha1.RuntimeOpenToSource {
		return "all"
	}
	return "probes"
}

func capabilities(networks ...plan.Network) map[string]bool {
	union := map[string]bool{}
	for _, n := range networks {
		for _, p := range n.Plugins {
			for capability, declared := range p.Capabilities {
				if declared {
					union[capability] = true
				}
			}
		}
	}
	return union
}

// asList is a configuration as a list; one that is none becomes a list of one,
// as runtimes do it.
func asList(c Conf) (json.RawMessage, plan.Network, error) {
	network, err := plan.ParseNetwork(c.Data, "")
	if err != nil {
		return nil, plan.Network{}, fmt.Errorf("%s: %w", c.File, err)
	}
	var list map[string]json.RawMessage
	if err := json.Unmarshal(c.Data, &list); err != nil {
		return nil, plan.Network{}, fmt.Errorf("%s: %w", c.File, err)
	}
	if _, is := list["plugins"]; is {
		return bytes.TrimSpace(c.Data), network, nil
	}
	single := map[string]json.RawMessage{"name": list["name"], "plugins": slices.Concat([]byte("["), c.Data, []byte("]"))}
	for _, key := range []string{"cniVersion", "cniVersions"} {
		if value, ok := list[key]; ok {
			single[key] = value
		}
	}
	text, err := json.Marshal(single)
	return text, network, err
}

// through leads to Braid where it is the node's CNI, which finds the network in
// the conf dir; without Braid, to the network itself.
func (w World) through(to json.RawMessage, network plan.Network) (json.RawMessage, plan.Network, error) {
	own, ok := w.file(confdir.OwnFile)
	if !ok {
		return to, network, nil
	}
	var braid struct {
		Name    string
		Plugins []struct{ Socket, Notes string }
	}
	if err := json.Unmarshal(own.Data, &braid); own.Err != nil || err != nil || len(braid.Plugins) == 0 {
		return nil, network, fmt.Errorf("%s: %w", own.Name, errors.Join(own.Err, err, errors.New("it is not as Braid writes it")))
	}
	place := confdir.Place{Socket: braid.Plugins[0].Socket, Notes: braid.Plugins[0].Notes}
	text := bytes.TrimSpace(confdir.OwnConf(network, place))
	network.Name, network.CNIVersion = braid.Name, supported[len(supported)-1]
	network.Plugins = []plan.Plugin{{Type: plan.OwnType, Capabilities: confdir.OwnCapabilities(network)}}
	return text, network, nil
}

// parseGate reads a gate that this package wrote.
func parseGate(data []byte) (gate, error) {
	var conf gateConf
	if err := json.Unmarshal(data, &conf); err != nil {
		return gate{}, fmt.Errorf("%s: %w", confdir.GateFile, err)
	}
	if len(conf.Plugins) != 1 || !slices.Contains(States(), conf.Plugins[0].Switch.State) || !IsGate(conf.Plugins[0].Switch.State) {
		return gate{}, fmt.Errorf("%s: this is no gate of a migration", confdir.GateFile)
	}
	return conf.Plugins[0].Switch, nil
}

// plugins are the programs that a gate between the two networks runs.
func (w World) plugins() ([]string, error) {
	types := []string{plan.OwnType}
	for _, c := range []Conf{w.Source, w.Target} {
		network, err := plan.ParseNetwork(c.Data, "")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.File, err)
		}
		for _, p := range network.Plugins {
			types = append(types, p.Type)
		}
	}
	return types, nil
}
