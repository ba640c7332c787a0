package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/lab"
)

// labCommand is `braid lab`: a Kubernetes cluster on this machine.
func labCommand() *cobra.Command {
	name := lab.DefaultName
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A real Kubernetes cluster on this machine, to try Braid in",
		Long: `A lab is a real Kubernetes cluster on one machine, without Docker and without
hardware virtualisation. Its nodes run under kernels of their own, Debian's
user-mode-linux unless "lab up --node-kernel" says otherwise. Every node has a
link trunk0, and so has the host "ext", which is at 10.20.1.1 in VLAN 2001 and at
10.20.2.1 in VLAN 2002.

Everything of a lab lives in one network namespace, one cgroup and one directory
below /run, and is gone after "braid lab down".`,
	}
	cmd.PersistentFlags().StringVar(&name, "name", name, "name of the lab; several can run side by side")
	cmd.AddCommand(
		labBuild(), labUp(&name), labDown(&name), labStatus(&name), labKubectl(&name), labRun(&name),
		labExec(&name), labKubeconfig(&name), labLogs(&name), labDemo(&name),
		labNode(&name), labAPI(&name), labLoad(&name),
	)
	return cmd
}

func labBuild() *cobra.Command {
	var cfg lab.BuildConfig
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the programs that a lab runs, so that `lab up` need not",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Progress = lab.NewProgress(cmd.ErrOrStderr())
			built, err := lab.Build(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(built)) {
				fmt.Fprintln(cmd.OutOrStdout(), built[name])
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&cfg.Only, "only", nil, "build only the programs of these names")
	cmd.Flags().BoolVar(&cfg.All, "all", false, "build also what only some labs need: Flannel, Cilium, CoreDNS")
	cmd.MarkFlagsMutuallyExclusive("only", "all")
	return cmd
}

func labUp(name *string) *cobra.Command {
	cfg := lab.Config{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring up a lab, and return when its nodes are Ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Name, cfg.Progress = *name, cmd.ErrOrStderr()
			cfg.ControlPlaneOnly = cfg.Nodes == 0
			_, err := lab.Up(cmd.Context(), cfg)
			return err
		},
	}
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", 2, "number of nodes, 0 to 9; without any there is only the control plane")
	cmd.Flags().StringVar((*string)(&cfg.NodeKernel), "node-kernel", "uml",
		"kernel of the nodes: uml or qemu, one of their own, or host, this machine's")
	cmd.Flags().StringVar(&cfg.CNI, "cni", "bridge", "default network: "+strings.Join(lab.CNIs, ", "))
	cmd.Flags().TextVar(&cfg.PodNet, "pod-net", netip.Prefix{}, "range of the pods on the default network bridge, /20 or more; it leaves the nodes' podCIDRs to another network")
	cmd.Flags().StringVar(&cfg.ClusterCIDR, "cluster-cidr", "", "what kube-proxy takes for the pods' addresses, \"none\" for nothing; the default network's unless given")
	cmd.Flags().IntVar(&cfg.MaxConfNum, "max-conf-num", 1, "configurations of the conf dir that containerd loads for every pod")
	cmd.Flags().IntVar(&cfg.NodeMemoryMiB, "node-memory", 3072, "memory of each node in MiB; it is taken as it is used")
	cmd.Flags().BoolVar(&cfg.DNS, "dns", false, "make CoreDNS, on two nodes, the cluster's DNS service")
	cmd.Flags().BoolVar(&cfg.Disk, "disk", false, "keep what nodes write over their reboots, also those with a kernel of their own")
	cmd.Flags().BoolVar(&cfg.Keep, "keep", false, "leave everything in place when the lab does not come up")
	return cmd
}

func labDown(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, whatever state it is in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Down(cmd.Context(), *name, cmd.ErrOrStderr())
		},
	}
}

func labStatus(name *string) *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what of a lab is running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			status := l.Status(cmd.Context())
			switch output {
			case "json":
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(status)
			case "":
				err = printStatus(cmd.OutOrStdout(), status)
			default:
				return fmt.Errorf("output %q: there is only json", output)
			}
			if err == nil && !status.Running {
				err = exitCode(1)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "output format: json")
	return cmd
}

func printStatus(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := map[bool]string{true: "running", false: "not running"}
	fmt.Fprintf(w, "lab\t%s\t%s\n", s.Name, state[s.Running])
	for _, c := range s.Components {
		fmt.Fprintf(w, "%s\tpid %d\t%s\n", c.Name, c.PID, state[c.Running])
	}
	for _, n := range s.Nodes {
		text := state[n.Running]
		if n.Ready {
			text += ", Ready, pods in " + n.PodCIDR
		} else if n.Message != "" {
			text += ", " + n.Message
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, n.Addr, text)
	}
	return w.Flush()
}

func labKubectl(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl -- ARGS...",
		Short: "Run kubectl inside the lab, as cluster-admin",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			// The files themselves, so that kubectl sees a terminal as one.
			code, err := l.RunKubectl(cmd.Context(), lab.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, args...)
			return exit(code, err)
		},
	}
}

func labRun(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run -- CMD ARGS...",
		Short: "Run a command of this machine inside the lab's network, with KUBECONFIG set",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			code, err := l.Run(cmd.Context(), lab.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, args...)
			return exit(code, err)
		},
	}
}

func labExec(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE -- CMD ARGS...",
		Short: "Run a command on a node, or on the external host (ext)",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			node, err := l.Node(args[0])
			if err != nil {
				return err
			}
			code, err := node.Run(cmd.Context(), guest.Cmd{
				Args: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
			})
			return exit(code, err)
		},
	}
}

func exit(code int, err error) error {
	if err == nil && code != 0 {
		return exitCode(code)
	}
	return err
}

func labKubeconfig(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the kubeconfig; it works inside the lab's network namespace",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), l.Kubeconfig())
			return err
		},
	}
}

func labLogs(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "logs [COMPONENT]",
		Short: "Print the log of a component, or list the components that have one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			logs, err := l.Logs()
			if err != nil {
				return err
			}
			return printLogs(cmd.OutOrStdout(), logs, args)
		},
	}
}

func printLogs(out io.Writer, logs map[string]string, args []string) error {
	names := slices.Sorted(maps.Keys(logs))
	if len(args) == 0 {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, n := range names {
			fmt.Fprintf(w, "%s\t%s\n", n, logs[n])
		}
		return w.Flush()
	}
	path, ok := logs[args[0]]
	if !ok {
		return fmt.Errorf("no log of %q; there are %s", args[0], strings.Join(names, ", "))
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}
