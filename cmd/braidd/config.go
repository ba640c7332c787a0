package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/plan"
)

// config is the file of --config. Every key may be missing.
type config struct {
	// RequestTimeout bounds each request of the runtime.
	RequestTimeout duration `json:"requestTimeout"`
	// PluginTimeout bounds each run of a plugin that is a program.
	PluginTimeout duration `json:"pluginTimeout"`
	// CleanupTimeout bounds the rollback of an ADD that failed.
	CleanupTimeout duration `json:"cleanupTimeout"`
	// ShutdownGrace is how long requests may still run after SIGTERM.
	ShutdownGrace duration `json:"shutdownGrace"`
	// Parallel bounds how many containers are worked on at once.
	Parallel int `json:"parallel"`
	// ConfDirNetworks is how many networks of the conf dir every pod gets, as
	// eth0, eth1 and so on. 1 is the default network alone.
	ConfDirNetworks int `json:"confDirNetworks"`
	// WaitForNetworkStatus has an ADD end when the pod's network status is
	// written, and fail when it is refused. Otherwise it is written soon after.
	WaitForNetworkStatus bool `json:"waitForNetworkStatus"`
	// NamespaceIsolation has pods use the NetworkAttachmentDefinitions of their
	// own namespace only, and those of GlobalNamespaces.
	NamespaceIsolation bool     `json:"namespaceIsolation"`
	GlobalNamespaces   []string `json:"globalNamespaces"`
}

// maxConfDirNetworks is the most that confDirNetworks can ask for; a larger
// number is a mistake.
const maxConfDirNetworks = 16

// duration is written as Go does, such as 30s.
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s is no duration such as \"30s\"", b)
	}
	parsed, err := time.ParseDuration(s)
	if err != nil || parsed <= 0 {
		return fmt.Errorf("%q is no duration such as \"30s\"", s)
	}
	*d = duration(parsed)
	return nil
}

func defaults() config {
	return config{
		RequestTimeout:   duration(60 * time.Second),
		PluginTimeout:    duration(30 * time.Second),
		CleanupTimeout:   duration(30 * time.Second),
		ShutdownGrace:    duration(20 * time.Second),
		Parallel:         16,
		ConfDirNetworks:  1,
		GlobalNamespaces: []string{"default"},
	}
}

// readConfig reads the file, defaults without one. A key that is misspelt is an
// error and not a setting that silently does nothing.
func readConfig(path string) (config, error) {
	c := defaults()
	if path == "" {
		return c, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read settings: %w", err)
	}
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return c, fmt.Errorf("read settings %s: %w", path, err)
	}
	if c.Parallel <= 0 {
		return c, fmt.Errorf("read settings %s: parallel is %d, it must be at least 1", path, c.Parallel)
	}
	if c.ConfDirNetworks <= 0 || c.ConfDirNetworks > maxConfDirNetworks {
		return c, fmt.Errorf("read settings %s: confDirNetworks is %d, it must be 1 to %d", path, c.ConfDirNetworks, maxConfDirNetworks)
	}
	if err := c.isolation().Validate(); err != nil {
		return c, fmt.Errorf("read settings %s: %w", path, err)
	}
	return c, nil
}

// isolation says which NetworkAttachmentDefinitions a pod may use.
func (c config) isolation() plan.Isolation {
	return plan.Isolation{On: c.NamespaceIsolation, Global: c.GlobalNamespaces}
}
