package keepsource

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"braid.dev/braid/internal/netns"
)

// state is what the state file holds.
type state struct {
	// Boot and NS say which life of the node's namespace the settings are of:
	// a reboot has undone ours, and numbers links anew.
	Boot     string     `json:"boot"`
	NS       netns.ID   `json:"ns"`
	RPFilter []original `json:"rpFilter"`
}

// original is a setting as it was before this package changed it.
type original struct {
	Link string `json:"link"`
	// Index is the link's: one of the same name may be another. 0 is "all".
	Index int `json:"index"`
	Value int `json:"value"`
	// Made is what this package made of it.
	Made int `json:"made"`
}

// remember writes down, before they change, the settings that steps change. The
// first value of a link is the one of before; later ones may be what somebody
// made of ours.
func (c Config) remember(steps []Step) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	news := false
	for _, step := range steps {
		if step.Part != PartSetting {
			continue
		}
		o := original{Link: step.Link, Index: step.Index, Value: step.From, Made: step.To}
		i := slices.IndexFunc(s.RPFilter, func(known original) bool { return known.Index == o.Index && known.Link == o.Link })
		switch {
		case i < 0:
			s.RPFilter = append(s.RPFilter, o)
		case s.RPFilter[i].Made != o.Made:
			s.RPFilter[i].Made = o.Made
		default:
			continue
		}
		news = true
	}
	if !news {
		return nil
	}
	return c.save(s)
}

// recall returns the settings of before, none without a state file.
func (c Config) recall() ([]original, error) {
	s, err := c.load()
	return s.RPFilter, err
}

// forget is the end of what there was to remember.
func (c Config) forget() error {
	var gone bool
	for _, file := range []string{c.tempFile(), c.StateFile} {
		err := os.Remove(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		gone = gone || err == nil
	}
	if !gone {
		return nil
	}
	return syncDir(filepath.Dir(c.StateFile))
}

// tempFile is the state file while it is written; a crash may leave it.
func (c Config) tempFile() string { return c.StateFile + ".tmp" }

// load reads the state of this life of the namespace.
func (c Config) load() (state, error) {
	now, err := c.life()
	if err != nil {
		return state{}, err
	}
	text, err := os.ReadFile(c.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return now, nil
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("%s: %w", c.StateFile, err)
	}
	if s.Boot != now.Boot || s.NS != now.NS {
		return now, nil
	}
	return s, nil
}

func (c Config) life() (state, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return state{}, err
	}
	ns := c.NS
	if ns == nil {
		if ns, err = netns.Current(); err != nil {
			return state{}, err
		}
		defer ns.Close()
	}
	id, err := ns.ID()
	return state{Boot: strings.TrimSpace(string(boot)), NS: id}, err
}

// save replaces the state file so that a power cut leaves either the old one or
// the new one.
func (c Config) save(s state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(c.StateFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Create(c.tempFile())
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.StateFile)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil // the file system cannot sync a directory
}
