package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/demo"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/lab"
)

// labDemo is what `make demo` runs.
func labDemo(name *string) *cobra.Command {
	cfg := lab.Config{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show pods in VLANs: bring a lab up, install Braid, and prove every promise",
		Long: `Brings up a lab of two nodes, installs Braid from deploy/, applies
examples/vlan, and shows each step as a user would type it. It ends with exit
code 0 only when every pod reaches what it should and nothing else. The lab
stays; "braid lab down" removes it.

It runs in a checkout of the repository, with the programs from "make build".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			root, err := checkout()
			if err != nil {
				return err
			}
			cfg.Name, cfg.Source, cfg.Progress = *name, root, cmd.ErrOrStderr()
			archive := filepath.Join(root, "out", "braid-image.tar")
			if err := writeImage(filepath.Join(root, "bin"), archive, image.Ref); err != nil {
				return err
			}
			l, err := lab.Up(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			d := demo.Demo{Cluster: l, Root: root, Out: cmd.OutOrStdout()}
			if err := d.VLAN(cmd.Context(), archive); err != nil {
				return fmt.Errorf("the demo does not hold: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nEverything holds, after %s. The cluster stays up: bin/braid lab kubectl -- get pods -o wide; make demo-down removes it.\n",
				time.Since(began).Round(time.Second))
			return nil
		},
	}
	return cmd
}

// checkout is the directory of the repository at or above the working one.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "deploy", "kustomization.yaml")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not in a checkout of Braid: there is no deploy/kustomization.yaml here or above")
		}
		dir = parent
	}
}

// writeImage writes Braid's image, made of the programs in binDir.
func writeImage(binDir, path, ref string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return image.Write(path, image.Braid(binDir, ref))
}

// imageCommand is `braid image`.
func imageCommand() *cobra.Command {
	output, binDir, ref := "", "", ""
	build := &cobra.Command{
		Use:   "build",
		Short: "Write Braid's container image as an archive, without a container engine",
		Long: `Writes Braid's image from the programs that "make build" makes. The archive is
loaded with "ctr -n k8s.io images import FILE", "docker load -i FILE" or
"podman load -i FILE".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := writeImage(binDir, output, ref); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", output, ref)
			return err
		},
	}
	build.Flags().StringVarP(&output, "output", "o", "out/braid-image.tar", "archive to write")
	build.Flags().StringVar(&binDir, "bin", "bin", "directory with braid-cni and braidd")
	build.Flags().StringVar(&ref, "ref", image.Ref, "name of the image")
	cmd := &cobra.Command{Use: "image", Short: "Braid's container image"}
	cmd.AddCommand(build)
	return cmd
}
