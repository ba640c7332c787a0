package confdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"braid.dev/braid/internal/plan"
)

// memoryFile holds the last good default network in the state dir, so that a
// daemon that starts while the network's file is away knows it still.
const memoryFile = "default-network.json"

type memory struct {
	Version int             `json:"version"`
	File    string          `json:"file"`
	Config  json.RawMessage `json:"config"`
}

// recall returns the remembered default network, nil when there is none.
func recall(stateDir string) (*Good, error) {
	path := filepath.Join(stateDir, memoryFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m memory
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("%s: version %d is unknown", path, m.Version)
	}
	network, err := plan.ParseNetwork(m.Config, "")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Good{File: m.File, Data: m.Config, Network: network}, nil
}

func remember(stateDir string, g Good) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(memory{Version: 1, File: g.File, Config: g.Data}, "", "  ")
	if err != nil {
		return err
	}
	return replace(stateDir, memoryFile, "."+memoryFile+".tmp", append(data, '\n'))
}
