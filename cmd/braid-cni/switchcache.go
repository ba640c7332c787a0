package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"braid.dev/braid/internal/wire"
)

// maker is a network that made a sandbox, or may have.
type maker struct {
	list list
	attachment
	// unsure says that nothing tells whether it did.
	unsure bool
	// file is libcni's memory of it that is to be removed afterwards, if any.
	file string
}

// attachment is what an ADD was given and gave.
type attachment struct {
	version string
	// args is CNI_ARGS, caps the arguments by capability.
	args string
	caps map[string]json.RawMessage
	// result is that of the ADD, none when it is not known.
	result json.RawMessage
}

// makers finds out which network made the sandbox. libcni remembers each
// attachment by the network's name, with the configuration of that moment, which
// says it even where both networks have the same name.
func (g gate) makers(r request) ([]maker, *wire.Error) {
	var stdin struct {
		PrevResult json.RawMessage            `json:"prevResult"`
		Caps       map[string]json.RawMessage `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(r.Stdin, &stdin); err != nil {
		return nil, &wire.Error{Code: wire.CodeDecode, Msg: "decode the network configuration", Details: err.Error()}
	}
	now := attachment{args: r.Args, caps: stdin.Caps}
	if isSet(stdin.PrevResult) {
		now.result = stdin.PrevResult
	}
	var found []maker
	for _, l := range []list{g.From, g.To} {
		m, ok, err := g.remembered(r, l, now)
		if err != nil {
			return nil, &wire.Error{Code: wire.CodeIO, Msg: "read what libcni remembers of the sandbox", Details: err.Error()}
		}
		if ok {
			found = append(found, m)
		}
		if g.From.Name == g.To.Name {
			break // one file for both
		}
	}
	begun, err := g.begun(r)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeIO, Msg: "read what is noted of the sandbox", Details: err.Error()}
	}
	byTo := func(m maker) bool { return m.list.Name == g.To.Name }
	if now.result != nil && g.From.Name != g.To.Name && !anyOf(found, byTo) {
		// The runtime remembers it where we do not look.
		found = append(found, maker{list: g.To, attachment: now.as(r.conf.CNIVersion)})
	} else if begun && !anyOf(found, byTo) {
		found = append(found, maker{list: g.To, attachment: now.as(r.conf.CNIVersion)})
	}
	if len(found) > 0 {
		return found, nil
	}
	// Refused, taken down already, or failed before there was a gate. Both are
	// not asked lightly: the first takes away the link from which the second
	// would read what it has to remove.
	return []maker{
		{list: g.From, attachment: now.as(g.From.version()), unsure: true},
		{list: g.To, attachment: now.as(r.conf.CNIVersion), unsure: true},
	}, nil
}

func anyOf(all []maker, is func(maker) bool) bool {
	for _, m := range all {
		if is(m) {
			return true
		}
	}
	return false
}

func (a attachment) as(version string) attachment {
	a.version = version
	return a
}

// remembered reads libcni's memory of an attachment to the network of l's name.
// What it cannot make out counts as an attachment to l.
func (g gate) remembered(r request, l list, now attachment) (maker, bool, error) {
	file := filepath.Join(g.CacheDir, "results", l.Name+"-"+r.ContainerID+"-"+r.IfName)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return maker{}, false, nil
	}
	if err != nil {
		return maker{}, false, err
	}
	m := parseMemory(data, l, now)
	if m.list.Name != r.conf.Name {
		m.file = file
	}
	return m, true, nil
}

// parseMemory reads a file of libcni. Until libcni 0.8 it was the result alone.
func parseMemory(data []byte, l list, now attachment) maker {
	m := maker{list: l, attachment: now}
	var memory struct {
		Kind    string                     `json:"kind"`
		Config  []byte                     `json:"config"`
		Args    [][2]string                `json:"cniArgs"`
		Caps    map[string]json.RawMessage `json:"capabilityArgs"`
		Result  json.RawMessage            `json:"result"`
		Version string                     `json:"cniVersion"`
	}
	if json.Unmarshal(data, &memory) != nil {
		m.version = l.version()
		return m
	}
	m.result = memory.Result
	if memory.Kind == "" && memory.Version != "" {
		m.result = data
	}
	if !isSet(m.result) {
		m.result = nil
	}
	if memory.Args != nil {
		m.args = joinArgs(memory.Args)
	}
	if memory.Caps != nil {
		m.caps = memory.Caps
	}
	if at, ok := listAt(memory.Config); ok && at.Name == l.Name {
		m.list = at
	}
	m.version = m.list.version()
	if v := versionOf(m.result); m.list.offers(v) {
		m.version = v // which the runtime chose
	}
	return m
}

// listAt is the network that a remembered configuration attached to. For a gate
// that is the one that was to come.
func listAt(conf []byte) (list, bool) {
	var l list
	if json.Unmarshal(conf, &l) != nil {
		return list{}, false
	}
	if len(l.Plugins) == 0 { // a single configuration is a list of one
		var p plugin
		if json.Unmarshal(conf, &p) != nil {
			return list{}, false
		}
		l.Plugins = []plugin{p}
	}
	if l.Plugins[0].isGate() {
		g, failure := parseGate(l.Plugins[0].conf["switch"])
		return g.To, failure == nil
	}
	return l, l.check() == nil
}

func joinArgs(args [][2]string) string {
	var pairs []string
	for _, kv := range args {
		pairs = append(pairs, kv[0]+"="+kv[1])
	}
	return strings.Join(pairs, ";")
}

// versionOf is the cniVersion of a result.
func versionOf(result json.RawMessage) string {
	var r struct {
		CNIVersion string `json:"cniVersion"`
	}
	if len(result) == 0 || json.Unmarshal(result, &r) != nil {
		return ""
	}
	return r.CNIVersion
}

// forget removes libcni's memory of what was taken down.
func (m maker) forget() *wire.Error {
	if m.file == "" {
		return nil
	}
	if err := os.Remove(m.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &wire.Error{Code: wire.CodeIO, Msg: fmt.Sprintf("forget the attachment to %s", m.list.Name), Details: err.Error()}
	}
	return nil
}

// note is the file that says that an ADD has begun and has not succeeded: libcni
// remembers only those that have.
func (g gate) note(r request) string {
	return filepath.Join(g.CacheDir, "braid-migrate-"+r.ContainerID+"-"+r.IfName)
}

// begin notes that the network To may have made something from now on.
func (g gate) begin(r request) error {
	if err := os.MkdirAll(g.CacheDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(g.note(r), nil, 0o600)
}

func (g gate) begun(r request) (bool, error) {
	_, err := os.Stat(g.note(r))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// end takes the note back: the ADD has succeeded, or was taken down.
func (g gate) end(r request) error {
	if err := os.Remove(g.note(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// capabilityArgs are what the runtime passes by capability.
func capabilityArgs(stdin []byte) (map[string]json.RawMessage, error) {
	var conf struct {
		Caps map[string]json.RawMessage `json:"runtimeConfig"`
	}
	err := json.Unmarshal(stdin, &conf)
	return conf.Caps, err
}
