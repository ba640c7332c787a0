package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/wire"
)

// cached is a file in which libcni, of the runtime, remembers an ADD.
type cached struct {
	Kind           string                     `json:"kind"`
	ContainerID    string                     `json:"containerId"`
	Config         []byte                     `json:"config"`
	IfName         string                     `json:"ifName"`
	NetworkName    string                     `json:"networkName"`
	NetNS          string                     `json:"netns"`
	CNIArgs        [][2]string                `json:"cniArgs"`
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs"`
	Result         json.RawMessage            `json:"result"`
}

const (
	cacheKind = "cniCacheV1"
	// maxCached is far above any such file, in bytes.
	maxCached = 4 << 20
)

// remembered lists what the runtime remembers of its ADDs through Braid, as the
// requests that it would make now. Files that are somebody else's are left out,
// and so are those that skip names by container and interface.
func remembered(dir string, skip func(file string) bool) ([]request, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the runtime's memory of its ADDs: %w", err)
	}
	var requests []request
	for _, e := range entries {
		if !e.Type().IsRegular() || skip(e.Name()) {
			continue
		}
		c, err := readCached(filepath.Join(dir, e.Name()))
		if err != nil || !c.callsBraid() {
			continue // the file is not ours, whatever is wrong with it
		}
		r, err := c.request()
		if err == nil {
			requests = append(requests, r)
		}
	}
	return requests, nil
}

func readCached(path string) (c cached, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	if info.Size() > maxCached {
		return c, fmt.Errorf("%s has more than %d bytes", path, maxCached)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	err = json.Unmarshal(data, &c)
	return c, err
}

// callsBraid reports whether the ADD was one of Braid's own configuration.
func (c cached) callsBraid() bool {
	var conf struct {
		Type    string `json:"type"`
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if c.Kind != cacheKind || json.Unmarshal(c.Config, &conf) != nil {
		return false
	}
	for _, p := range conf.Plugins {
		if p.Type == plan.OwnType {
			return true
		}
	}
	return conf.Type == plan.OwnType
}

// request is the DEL that the runtime would ask for.
func (c cached) request() (request, error) {
	stdin, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": c.NetworkName, "type": plan.OwnType,
		"runtimeConfig": c.CapabilityArgs, "prevResult": c.Result,
	})
	if err != nil {
		return request{}, err
	}
	var args []string
	for _, pair := range c.CNIArgs {
		args = append(args, pair[0]+"="+pair[1])
	}
	if c.NetNS == "" {
		c.NetNS = c.sandboxPath()
	}
	return parseRequest(wire.Request{
		Command: "DEL", ContainerID: c.ContainerID, IfName: c.IfName, NetNS: c.NetNS,
		Args: strings.Join(args, ";"), Stdin: stdin,
	})
}

// sandboxPath is the namespace according to the result: libcni before 1.2 keeps
// none beside it.
func (c cached) sandboxPath() string {
	var result struct {
		Interfaces []struct {
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	}
	if json.Unmarshal(c.Result, &result) == nil {
		for _, i := range result.Interfaces {
			if i.Sandbox != "" {
				return i.Sandbox
			}
		}
	}
	return ""
}
