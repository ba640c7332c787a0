package confswitch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/confdir/explain"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/plan"
)

// Runtime is the node's container runtime; *cri.Client is one.
type Runtime interface {
	Status(ctx context.Context) (cri.Status, error)
}

const (
	// verifyFor is how long a runtime may take to load what was written. It has
	// that from the kernel at once and needs some milliseconds.
	verifyFor = 15 * time.Second
	// lookEvery is how often it is asked; it does not tell by itself.
	lookEvery = 100 * time.Millisecond
	// nudgeAfter is when the conf dir is written to without changing it: a
	// runtime that has missed an event loads it then.
	nudgeAfter = 2 * time.Second
	nudgeFile  = ".braid-migrate.nudge"
)

// Verify waits until the runtime itself says that it has loaded the state's
// configuration, and is ready for pods. It gives up after 15 seconds, or with
// the context, and says what the runtime had loaded instead.
func Verify(ctx context.Context, c Config, r Runtime, want v1alpha1.RuntimeState) error {
	ctx, cancel := context.WithTimeout(ctx, verifyFor)
	defer cancel()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	nudge := time.NewTicker(nudgeAfter)
	defer nudge.Stop()
	for {
		have, err := Loaded(ctx, c, r)
		if err == nil && have == want {
			return nil
		}
		select {
		case <-look.C:
		case <-nudge.C:
			if err := c.nudge(); err != nil {
				return fmt.Errorf("verify that the runtime is at %s: %w", want, err)
			}
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("it is at %s", have)
			}
			return fmt.Errorf("verify that the runtime is at %s: %w", want, err)
		}
	}
}

// nudge makes a runtime look at its conf dir.
func (c Config) nudge() error {
	path := filepath.Join(c.Dir, nudgeFile)
	return errors.Join(os.WriteFile(path, []byte("\n"), 0o600), os.Remove(path))
}

// Loaded says which state the runtime itself is in. It is empty, with the reason
// as the error, when it is in none of the known, or not ready for pods.
//
// Containerd tells what it has loaded. CRI-O does not: there the files say what
// it reads within moments, unless it is told to use one network whatever the
// files are.
func Loaded(ctx context.Context, c Config, r Runtime) (v1alpha1.RuntimeState, error) {
	status, err := r.Status(ctx)
	if err != nil {
		return "", err
	}
	if err := c.check(); err != nil {
		return "", err
	}
	w, err := c.world()
	if err != nil {
		return "", err
	}
	return w.loaded(status)
}

// loaded compares what a runtime says with the files and the two networks.
func (w World) loaded(status cri.Status) (v1alpha1.RuntimeState, error) {
	seen, err := explain.ParseSeen(status.Info)
	switch {
	case err != nil:
		return "", fmt.Errorf("status of the runtime: %w", err)
	case seen.LoadError != "":
		return "", fmt.Errorf("the runtime did not load its configuration: %s", seen.LoadError)
	case !status.NetworkReady:
		return "", fmt.Errorf("the runtime is not ready for pods: %s", status.Message)
	case seen.Networks == nil:
		return w.loadedSilently(status)
	case len(seen.Networks) == 0:
		return "", errors.New("the runtime has loaded no network")
	}
	first := seen.Networks[0]
	if len(first.Plugins) > 0 {
		if state, ok := w.gateOf(first.Plugins[0]); ok {
			return state, nil
		}
	}
	if own, ok := w.file(confdir.OwnFile); ok && w.same(first, own.Data) {
		return w.behindBraid()
	}
	// Where both have one file name, and the same name, the text is compared.
	for _, side := range []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target} {
		conf := w.conf(side)
		have, exists := w.file(conf.File)
		if w.same(first, conf.Data) || exists && w.is(conf, have) && w.same(first, have.Data) {
			return v1alpha1.RuntimeState(side), nil
		}
	}
	return "", fmt.Errorf("the runtime has loaded the network %q with the plugins %s", first.Name, types(first.Plugins))
}

// gateOf is the state of a gate that the runtime has loaded, when it is the very
// gate of the conf dir.
func (w World) gateOf(source string) (v1alpha1.RuntimeState, bool) {
	file, ok := w.file(confdir.GateFile)
	if !ok {
		return "", false
	}
	var conf struct {
		Plugins []json.RawMessage `json:"plugins"`
	}
	g, err := parseGate(file.Data)
	if err != nil || g.Migration != w.Migration || json.Unmarshal(file.Data, &conf) != nil {
		return "", false
	}
	return g.State, sameJSON(conf.Plugins[0], []byte(source))
}

// behindBraid is the state where the runtime has loaded Braid's configuration:
// that of the files behind it.
func (w World) behindBraid() (v1alpha1.RuntimeState, error) {
	state, err := w.state()
	if err == nil && IsGate(state) {
		return "", fmt.Errorf("the runtime has loaded %s and not %s", confdir.OwnFile, confdir.GateFile)
	}
	return state, err
}

// loadedSilently is for a runtime that does not tell what it has loaded.
func (w World) loadedSilently(status cri.Status) (v1alpha1.RuntimeState, error) {
	state, err := w.state()
	if err != nil {
		return "", err
	}
	pin := pinned.FindStringSubmatch(status.Info["config"])
	if pin == nil {
		return state, nil
	}
	return "", fmt.Errorf("the runtime uses the network %q whatever the files are: remove cni_default_network from its configuration", pin[1])
}

// pinned is how CRI-O's configuration, in its verbose status, names the one
// network that it uses.
var pinned = regexp.MustCompile(`(?m)^\s*cni_default_network\s*=\s*"([^"]+)"`)

// same tells whether a network that the runtime has loaded is that of a file.
func (w World) same(seen explain.SeenNetwork, data []byte) bool {
	network, err := plan.ParseNetwork(data, "")
	if err != nil {
		// Braid's own file calls Braid, which is no network to ParseNetwork.
		var list struct {
			Name    string            `json:"name"`
			Plugins []json.RawMessage `json:"plugins"`
		}
		return json.Unmarshal(data, &list) == nil && list.Name == seen.Name &&
			slices.EqualFunc(list.Plugins, seen.Plugins, func(a json.RawMessage, b string) bool { return sameJSON(a, []byte(b)) })
	}
	return network.Name == seen.Name &&
		slices.EqualFunc(network.Plugins, seen.Plugins, func(p plan.Plugin, text string) bool { return sameJSON(p.Conf, []byte(text)) })
}

// types names the plugins of a network for a message.
func types(plugins []string) string {
	var names []string
	for _, p := range plugins {
		var conf struct{ Type string }
		if json.Unmarshal([]byte(p), &conf) != nil || conf.Type == "" {
			conf.Type = "?"
		}
		names = append(names, conf.Type)
	}
	return fmt.Sprint(names)
}
