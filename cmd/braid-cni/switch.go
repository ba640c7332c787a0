package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"braid.dev/braid/internal/wire"
)

// A gate is the configuration of a node in the middle of a migration from one
// network to another. It has the name of the network that is to come, and
// neither braidd nor the cluster is asked: pods end also while these are away.
//
//	ADD     an admitted pod gets the network To, as if its list were loaded
//	        itself; others are refused for now
//	DEL     the network that made the sandbox takes it down, with what that had
//	        given it
//	CHECK, GC and STATUS succeed and do nothing: a STATUS that fails would make
//	        the node NotReady and take its pods out of their Services
type gate struct {
	From list `json:"from"`
	To   list `json:"to"`
	// Admit is who gets To: admitProbes or admitAll.
	Admit string `json:"admit"`
	// Probes is the namespace of the pods that are always admitted.
	Probes string `json:"probes"`
	// Message is what those learn that are refused.
	Message string `json:"message"`
	// CacheDir is where the runtime's libcni remembers what it attached.
	CacheDir string `json:"cacheDir"`
}

const (
	admitProbes = "probes"
	admitAll    = "all"
	// defaultCacheDir is that of libcni, which containerd and CRI-O keep.
	defaultCacheDir = "/var/lib/cni"
	defaultMessage  = "this node moves to another network, no pod can start until that is done"
)

// list is a network as libcni knows it.
type list struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions"`
	Name        string   `json:"name"`
	Plugins     []plugin `json:"plugins"`
}

// plugin is one of a list.
type plugin struct {
	kind         string
	capabilities map[string]bool
	// conf has the keys of the configuration as they were written.
	conf map[string]json.RawMessage
}

// UnmarshalJSON reads the keys that libcni reads and keeps all.
func (p *plugin) UnmarshalJSON(data []byte) error {
	var known struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	if err := json.Unmarshal(data, &known); err != nil {
		return err
	}
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(data, &conf); err != nil {
		return err
	}
	p.kind, p.capabilities, p.conf = known.Type, known.Capabilities, conf
	return nil
}

// isGate tells that the plugin is this program as a gate.
func (p plugin) isGate() bool { return isSet(p.conf["switch"]) }

func isSet(m json.RawMessage) bool { return len(m) > 0 && !bytes.Equal(m, []byte("null")) }

// check refuses a list that cannot be run, and one that would run itself.
func (l list) check() error {
	if !isName(l.Name) {
		return fmt.Errorf("network name %q is not valid", l.Name)
	}
	if len(l.Plugins) == 0 {
		return fmt.Errorf("network %s has no plugins", l.Name)
	}
	for i, p := range l.Plugins {
		if p.kind == "" {
			return fmt.Errorf("plugin %d of network %s has no type", i+1, l.Name)
		}
		if p.isGate() {
			return fmt.Errorf("plugin %d of network %s is itself a switch", i+1, l.Name)
		}
	}
	return nil
}

// parseGate reads the key "switch".
func parseGate(data []byte) (gate, *wire.Error) {
	g := gate{Message: defaultMessage, CacheDir: defaultCacheDir}
	invalid := func(err error) (gate, *wire.Error) {
		return g, &wire.Error{Code: wire.CodeInvalidConfig, Msg: "the key \"switch\" of the network configuration", Details: err.Error()}
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return invalid(err)
	}
	if err := errors.Join(g.From.check(), g.To.check()); err != nil {
		return invalid(err)
	}
	if g.CacheDir == "" {
		g.CacheDir = defaultCacheDir
	}
	switch {
	case g.Admit != admitProbes && g.Admit != admitAll:
		return invalid(fmt.Errorf("admit %q: it is %q or %q", g.Admit, admitProbes, admitAll))
	case !filepath.IsAbs(g.CacheDir):
		return invalid(fmt.Errorf("cacheDir %q: it must be an absolute path", g.CacheDir))
	}
	return g, nil
}

// serveGate serves one request in the middle of a migration.
func serveGate(p process, r request) int {
	g, failure := parseGate(r.conf.Switch)
	if failure != nil {
		return fail(p.stdout, r.conf, failure)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, patienceFor(r).total, errTimeout)
	defer cancel()
	if p.getenv("CNI_PATH") == "" && (r.Command == "ADD" || r.Command == "DEL") {
		return fail(p.stdout, r.conf, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: "required environment variables are missing: CNI_PATH"})
	}
	c := caller{getenv: p.getenv, environ: p.environ(), stderr: p.stderr, request: r}
	var result json.RawMessage
	switch r.Command {
	case "ADD":
		result, failure = g.add(ctx, c)
	case "DEL":
		failure = g.del(ctx, c)
	}
	if failure != nil {
		return fail(p.stdout, r.conf, failure)
	}
	if _, err := p.stdout.Write(result); err != nil {
		fmt.Fprintf(p.stderr, "braid-cni: write result: %v\n", err)
		return 1
	}
	return 0
}

// add attaches an admitted pod to the network that is to come. What a failure
// leaves is taken down by the DEL that every runtime sends after it.
func (g gate) add(ctx context.Context, c caller) (json.RawMessage, *wire.Error) {
	if !g.admits(c.request.Args) {
		return nil, &wire.Error{
			Code: wire.CodeTryAgainLater, Msg: g.Message,
			Details: fmt.Sprintf("from network %s to network %s", g.From.Name, g.To.Name),
		}
	}
	caps, err := capabilityArgs(c.request.Stdin)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalidConfig, Msg: "the key \"runtimeConfig\" of the network configuration", Details: err.Error()}
	}
	if err := g.begin(c.request); err != nil {
		return nil, &wire.Error{Code: wire.CodeIO, Msg: "note that the pod is attached", Details: err.Error()}
	}
	result, failure := c.addList(ctx, g.To, attachment{version: c.request.conf.CNIVersion, args: c.request.Args, caps: caps})
	if failure != nil {
		return nil, failure
	}
	if err := g.end(c.request); err != nil {
		return nil, &wire.Error{Code: wire.CodeIO, Msg: "note that the pod is attached", Details: err.Error()}
	}
	return result, nil
}

// admits decides by the pod's namespace, which every Kubernetes runtime passes.
func (g gate) admits(args string) bool {
	if g.Admit == admitAll {
		return true
	}
	for pair := range strings.SplitSeq(args, ";") {
		if key, value, _ := strings.Cut(pair, "="); key == "K8S_POD_NAMESPACE" {
			return g.Probes != "" && value == g.Probes
		}
	}
	return false
}

// del has the sandbox taken down by the network that made it.
func (g gate) del(ctx context.Context, c caller) *wire.Error {
	makers, failure := g.makers(c.request)
	if failure != nil {
		return failure
	}
	var failures []*wire.Error
	for _, m := range makers {
		failure := c.delList(ctx, m)
		if failure == nil {
			// The runtime removes the file of the name that it has loaded, this
			// is the other one. Another DEL finds no file and asks both.
			failure = m.forget()
		}
		if failure != nil {
			failures = append(failures, failure)
		}
	}
	if len(failures) == 0 {
		if err := g.end(c.request); err != nil {
			return &wire.Error{Code: wire.CodeIO, Msg: "note that the pod is gone", Details: err.Error()}
		}
	}
	return joinFailures(failures)
}

// joinFailures keeps the code and the message of the first.
func joinFailures(all []*wire.Error) *wire.Error {
	if len(all) == 0 {
		return nil
	}
	first := *all[0]
	for _, e := range all[1:] {
		first.Details = strings.TrimPrefix(first.Details+"; "+e.Error(), "; ")
	}
	return &first
}

// version is the highest that the list offers and this program knows, which is
// what a runtime of today would choose.
func (l list) version() string {
	best := ""
	for _, v := range supportedVersions() {
		if l.offers(v) {
			best = v
		}
	}
	return cmp.Or(best, l.CNIVersion)
}

func (l list) offers(version string) bool {
	return version != "" && (version == l.CNIVersion || slices.Contains(l.CNIVersions, version))
}
