package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/hostexec"
	"braid.dev/braid/internal/migrate/survey"
)

// factsCommand prints what a migration would know of this node, in the form in
// which a dump of a cluster has it, as facts/NODE.json.
func factsCommand() *cobra.Command {
	var conf survey.Config
	var root, endpoint string
	var peers []string
	c := &cobra.Command{
		Use:    "facts",
		Short:  "Print what the preflight of a migration has to know of this node",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			conf.Root = hostexec.Root(root)
			if conf.Name == "" {
				conf.Name, _ = os.Hostname()
			}
			for _, text := range peers {
				p, err := parsePeer(text)
				if err != nil {
					return err
				}
				conf.Peers = append(conf.Peers, p)
			}
			if endpoint != "" {
				client, err := cri.Dial(endpoint)
				if err != nil {
					return err
				}
				defer client.Close()
				conf.Runtime = client
			}
			out := json.NewEncoder(c.OutOrStdout())
			out.SetIndent("", "  ")
			return out.Encode(survey.Collect(c.Context(), conf))
		},
	}
	c.Flags().StringVar(&conf.Name, "node-name", os.Getenv("NODE_NAME"), "`name` of the Node object (default: $NODE_NAME or the host's name)")
	c.Flags().StringVar(&root, "host-root", "/", "`directory` that the host's / is mounted on")
	c.Flags().StringVar(&conf.ConfDir, "cni-conf-dir", "", "`directory` of the host where the runtime looks for networks (default: as the runtime says)")
	c.Flags().StringVar(&conf.BinDir, "cni-bin-dir", "", "`directory` of the host with the runtime's plugins (default: as the runtime says)")
	c.Flags().StringVar(&endpoint, "runtime-endpoint", "", "`socket` of the container runtime (default: it is not asked)")
	c.Flags().StringArrayVar(&peers, "peer", nil, "`NODE=ADDRESS:PORT` of another node that answers; may be repeated")
	c.AddCommand(echoCommand())
	return c
}

// echoCommand answers the questions of other nodes.
func echoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "echo ADDRESS:PORT",
		Short: "Answer other nodes that ask whether a UDP port can be reached",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return err
			}
			return survey.Echo(c.Context(), at)
		},
	}
}

func parsePeer(text string) (survey.Peer, error) {
	node, at, ok := strings.Cut(text, "=")
	addr, err := netip.ParseAddrPort(at)
	if !ok || node == "" || err != nil {
		return survey.Peer{}, fmt.Errorf("--peer %s: it has the form NODE=ADDRESS:PORT", strconv.Quote(text))
	}
	return survey.Peer{Node: node, Addr: addr.Addr(), Ports: []uint16{addr.Port()}}, nil
}
