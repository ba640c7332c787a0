package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/confdir/explain"
	"braid.dev/braid/internal/cri"
)

const (
	defaultConfDir = "/etc/cni/net.d"
	// criTimeout bounds a runtime that does not answer.
	criTimeout = 10 * time.Second
)

// confCommand is `braid conf`: the directory in which a runtime finds its
// networks.
func confCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "conf", Short: "The conf dir, where a container runtime finds its networks"}
	cmd.AddCommand(confExplain())
	return cmd
}

// confFlags are the flags of `braid conf explain`.
type confFlags struct {
	dir, runtime, output             string
	maxConfNum                       int
	criEndpoint, binDir, cacheDir    string
	crioDefault                      string
	dirGiven, runtimeGiven, maxGiven bool
}

func confExplain() *cobra.Command {
	var f confFlags
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Which files the runtime loads, in which order, as which interfaces, and what is dangerous",
		Long: `Explain reads the conf dir as a container runtime does and says which files it
loads, in which order, as which interfaces, what it ignores and why, and what is
dangerous. It changes nothing.

With --cri-endpoint it asks the runtime as well: which runtime it is, its conf dir and
max_conf_num, and which networks it really loaded.

The exit code is 2 if the runtime has no network, so that no pod can start.
docs/conf-explain.md explains every finding.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.dirGiven, f.runtimeGiven, f.maxGiven = cmd.Flags().Changed("dir"), cmd.Flags().Changed("runtime"), cmd.Flags().Changed("max-conf-num")
			return explainConf(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", defaultConfDir, "conf dir of the runtime; from the runtime itself with --cri-endpoint")
	flags.IntVar(&f.maxConfNum, "max-conf-num", 1, "containerd's max_conf_num, 0 for all files; from the runtime itself with --cri-endpoint")
	flags.StringVar(&f.runtime, "runtime", "containerd", "containerd-1.6, containerd-1.7, containerd-2.0, containerd-2, cri-o, or containerd for the newest")
	flags.StringVar(&f.criEndpoint, "cri-endpoint", "", "compare with the running runtime, such as unix:///run/containerd/containerd.sock")
	flags.StringVar(&f.crioDefault, "cri-o-default-network", "", "CRI-O's cni_default_network")
	flags.StringVar(&f.binDir, "bin-dir", "", "look for the plugins in these directories, separated by colons, and ask each for its version")
	flags.StringVar(&f.cacheDir, "cache-dir", "", "look for attachments of networks that are gone in libcni's cache, such as /var/lib/cni")
	flags.StringVarP(&f.output, "output", "o", "", "output format: json")
	return cmd
}

func explainConf(ctx context.Context, out io.Writer, f confFlags) error {
	if f.output != "" && f.output != "json" {
		return fmt.Errorf("output %q: there is only json", f.output)
	}
	explanation, err := explained(ctx, f)
	if err != nil {
		if f.output != "json" {
			return err
		}
		explanation = explain.Explanation{Networks: []explain.Network{}, Ignored: []explain.Ignored{}, Findings: []explain.Finding{}, Error: err.Error()}
	}
	if f.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(explanation)
	} else {
		err = printExplanation(out, explanation)
	}
	if err == nil && explanation.Error != "" {
		err = exitCode(2)
	}
	return err
}

// explained gathers what the explanation depends on. What the runtime says
// holds where a flag does not.
func explained(ctx context.Context, f confFlags) (explain.Explanation, error) {
	in := explain.Input{MaxConfNum: f.maxConfNum, DefaultNetwork: f.crioDefault}
	var err error
	if in.Runtime, err = explain.RuntimeNamed(f.runtime); err != nil {
		return explain.Explanation{}, err
	}
	if f.criEndpoint != "" {
		if err := askRuntime(ctx, &f, &in); err != nil {
			return explain.Explanation{}, err
		}
	}
	if in.Files, err = explain.ReadDir(f.dir); err != nil {
		return explain.Explanation{}, err
	}
	if f.binDir != "" {
		in.Programs = explain.ReadPrograms(ctx, filepath.SplitList(f.binDir), explain.Types(in.Files, in.Runtime))
	}
	if f.cacheDir != "" {
		if in.Attached, err = explain.ReadAttached(f.cacheDir); err != nil {
			return explain.Explanation{}, err
		}
	}
	return explain.Explain(in), nil
}

// askRuntime completes f and in by what the runtime says of itself.
func askRuntime(ctx context.Context, f *confFlags, in *explain.Input) error {
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	status, err := cri.GetStatus(ctx, f.criEndpoint)
	if err != nil {
		return err
	}
	if !f.runtimeGiven {
		if in.Runtime, err = explain.RuntimeOf(status.Name, status.Version); err != nil {
			return err
		}
	}
	seen, err := explain.ParseSeen(status.Info)
	if err != nil {
		return fmt.Errorf("runtime %s: %w", f.criEndpoint, err)
	}
	if !status.NetworkReady {
		seen.NotReady = status.Message
	}
	if seen.ConfDir != "" {
		if !f.dirGiven {
			f.dir = seen.ConfDir
		}
		if !f.maxGiven {
			in.MaxConfNum = seen.MaxConfNum
		}
	}
	if seen.Dir, err = filepath.Abs(f.dir); err != nil {
		return err
	}
	in.Seen = &seen
	return nil
}

func printExplanation(out io.Writer, e explain.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, n := range e.Networks {
		fmt.Fprintf(w, "%s\t%s\t%s\n", n.IfName, n.Name, n.File)
	}
	for _, i := range e.Ignored {
		fmt.Fprintf(w, "-\t\t%s\t%s\n", i.File, i.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range e.Findings {
		fmt.Fprintf(out, "\n%s %s: %s\n    %s\n", f.Severity, f.Code, f.Message, f.Fix)
	}
	if e.Error != "" {
		fmt.Fprintf(out, "\n%s\n", e.Error)
	}
	return nil
}
