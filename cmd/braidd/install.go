package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// installCommand puts the shim where the runtime looks for plugins.
func installCommand() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use:   "install",
		Short: "Put a plugin into the host's directory of CNI plugins, also while it is in use",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := install(from, to); err != nil {
				return fmt.Errorf("install %s into %s: %w", from, to, err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&from, "from", "/usr/bin/braid-cni", "the program, a `file`")
	c.Flags().StringVar(&to, "to", "/opt/cni/bin", "`directory` to put it into")
	return c
}

// install writes a new file and renames it into place. A program that runs
// cannot be written to, and one that is half written cannot be run.
func install(from, dir string) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Base(from)
	// A fixed name: what an interrupted installation left is overwritten.
	temp := filepath.Join(dir, "."+name+".tmp")
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	target, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	_, err = io.Copy(target, source)
	if err = errors.Join(err, target.Chmod(0o755), target.Sync(), target.Close()); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, name))
}
