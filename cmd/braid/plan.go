package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/manifest"
	"braid.dev/braid/internal/plan"
)

// refused is the exit code for pods that would not start.
const refused exitCode = 2

// planFlags are the flags of `braid plan`.
type planFlags struct {
	files           []string
	recursive       bool
	namespace       string
	confDir         string
	confDirNetworks int
	isolation       plan.Isolation
	output          string
	why             bool
}

// planCommand is `braid plan`: what pods would get, from files alone.
func planCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan -f FILE or DIR…",
		Short: "Show which networks pods would get, and why, without a cluster",
		Long: `Plan reads manifests and shows which networks each pod in them would get, as
braidd on a node would decide it. Pods of Deployments, StatefulSets, DaemonSets,
Jobs, CronJobs and everything else with a pod template are planned by their
template. The NetworkAttachmentDefinitions that they ask for have to be among
the files.

It asks no cluster and changes nothing. The exit code is 2 if any pod would be
refused.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.files = append(f.files, args...)
			return showPlans(cmd.InOrStdin(), cmd.OutOrStdout(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "`file` or directory with manifests, - for standard input; can be repeated")
	flags.BoolVarP(&f.recursive, "recursive", "R", false, "read the directories in directories too")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "`namespace` of objects that name none (default \"default\")")
	flags.StringVar(&f.confDir, "conf-dir", "", "conf dir of a node, such as a copy of /etc/cni/net.d, which knows the default network")
	flags.IntVar(&f.confDirNetworks, "conf-dir-networks", 1, "how many networks of the conf dir every pod gets (braidd's setting confDirNetworks)")
	flags.BoolVar(&f.isolation.On, "namespace-isolation", false, "pods may use the networks of their own namespace only (braidd's setting namespaceIsolation)")
	flags.StringSliceVar(&f.isolation.Global, "global-namespaces", []string{"default"}, "`namespaces` whose networks every pod may use nevertheless (braidd's setting globalNamespaces)")
	flags.StringVarP(&f.output, "output", "o", "", "output format: json (default: a table)")
	flags.BoolVar(&f.why, "why", false, "show the reasons in the table")
	return cmd
}

// planned is what is said of one pod. People's scripts read it.
type planned struct {
	Pod string `json:"pod"`
	// Kind is that of the object that the pod would come from.
	Kind        string              `json:"kind"`
	Attachments []plannedAttachment `json:"attachments"`
	Error       string              `json:"error"`
}

type plannedAttachment struct {
	Network string `json:"network"`
	IfName  string `json:"ifName"`
	// Driver is the type of the plugin that makes the interface. Those that
	// work on it afterwards are in Conf.
	Driver       string      `json:"driver"`
	Conf         plannedConf `json:"conf"`
	IPs          []string    `json:"ips"`
	MAC          string      `json:"mac"`
	DefaultRoute bool        `json:"defaultRoute"`
	Reasons      []string    `json:"reasons"`
}

// plannedConf is a configuration list, empty when it is not known.
type plannedConf struct {
	CNIVersion   string            `json:"cniVersion,omitempty"`
	Name         string            `json:"name,omitempty"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	DisableGC    bool              `json:"disableGC,omitempty"`
	Plugins      []json.RawMessage `json:"plugins,omitempty"`

	// chain are the types of the plugins.
	chain []string
}

func showPlans(stdin io.Reader, out io.Writer, f planFlags) error {
	if f.output != "" && f.output != "json" {
		return fmt.Errorf("output %q: there is only json", f.output)
	}
	set, err := readManifests(stdin, f)
	if err != nil {
		return err
	}
	in, err := planInput(set, f)
	if err != nil {
		return err
	}
	pods := []planned{}
	for _, w := range set.Workloads {
		pods = append(pods, planWorkload(in, w))
	}
	if err := printPlans(out, pods, f); err != nil {
		return err
	}
	for _, p := range pods {
		if p.Error != "" {
			return refused
		}
	}
	return nil
}

func readManifests(stdin io.Reader, f planFlags) (*manifest.Set, error) {
	if len(f.files) == 0 {
		return nil, errors.New("no manifests: name files or directories with -f")
	}
	set := &manifest.Set{Namespace: f.namespace}
	for _, path := range f.files {
		if path != "-" {
			if err := set.ReadPath(path, f.recursive); err != nil {
				return nil, err
			}
			continue
		}
		data, err := io.ReadAll(stdin)
		if err == nil {
			err = set.Read(data)
		}
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	}
	return set, nil
}

// planInput is what all pods' plans have in common.
func planInput(set *manifest.Set, f planFlags) (plan.Input, error) {
	in := plan.Input{IfName: "eth0", Definition: set.Definition, ConfDirNetworks: f.confDirNetworks, Isolation: f.isolation}
	if err := f.isolation.Validate(); err != nil {
		return in, err
	}
	if f.confDir == "" && f.confDirNetworks > 1 {
		return in, errors.New("--conf-dir-networks needs --conf-dir")
	}
	if f.confDir == "" {
		in.Default = unknownDefault
		return in, nil
	}
	files, err := confdir.ReadDir(f.confDir)
	if err != nil {
		return in, err
	}
	state := confdir.Choose(files, confdir.State{})
	if networks := state.First(max(f.confDirNetworks, 1)); len(networks) > 0 {
		in.Default, in.Beside = networks[0], networks[1:]
	}
	in.OnDisk = state.OnDisk
	return in, nil
}

// unknownDefault stands for the default network that every node has, and that
// only its conf dir knows.
var unknownDefault = plan.Network{Name: "default", Plugins: []plan.Plugin{{Conf: json.RawMessage("{}")}}}

func planWorkload(in plan.Input, w manifest.Workload) planned {
	out := planned{Pod: w.Pod.Namespace + "/" + w.Pod.Name, Kind: w.Kind, Attachments: []plannedAttachment{}}
	if w.HostNetwork {
		return out
	}
	in.Pod = w.Pod
	p, err := plan.Build(in)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for _, a := range p.Attachments {
		out.Attachments = append(out.Attachments, show(a))
	}
	return out
}

func show(a plan.Attachment) plannedAttachment {
	out := plannedAttachment{
		Network: a.Network, IfName: a.IfName, Driver: a.Config.Plugins[0].Type,
		IPs: a.IPs, MAC: a.MAC, DefaultRoute: a.DefaultRoute, Reasons: a.Reasons,
	}
	if out.IPs == nil {
		out.IPs = []string{}
	}
	if out.Driver == "" {
		out.Reasons = append(out.Reasons, "which one that is, the conf dir of the node knows (--conf-dir)")
		return out
	}
	c := a.Config
	out.Conf = plannedConf{CNIVersion: c.CNIVersion, Name: c.Name, DisableCheck: c.DisableCheck, DisableGC: c.DisableGC}
	for _, p := range c.Plugins {
		out.Conf.Plugins = append(out.Conf.Plugins, p.Conf)
		out.Conf.chain = append(out.Conf.chain, p.Type)
	}
	return out
}

func printPlans(out io.Writer, pods []planned, f planFlags) error {
	if f.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(pods)
	}
	if len(pods) == 0 {
		_, err := fmt.Fprintln(out, "There is no pod in these manifests.")
		return err
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tINTERFACE\tNETWORK\tDRIVER\tADDRESSES\tDEFAULT ROUTE")
	var notes []string
	for _, p := range pods {
		notes = append(notes, p.rows(w, f.why)...)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	if len(notes) > 0 {
		_, err := fmt.Fprintf(out, "\n%s\n", strings.Join(notes, "\n"))
		return err
	}
	return nil
}

// rows writes the pod's lines of the table, and returns what is to be said
// below it.
func (p planned) rows(w io.Writer, why bool) (notes []string) {
	switch {
	case p.Error != "":
		fmt.Fprintf(w, "%s\trefused\t\t\t\t\n", p.Pod)
		return []string{p.Pod + " would be refused: " + p.Error}
	case len(p.Attachments) == 0:
		fmt.Fprintf(w, "%s\tthose of the host\t\t\t\t\n", p.Pod)
	}
	name := p.Pod
	for _, a := range p.Attachments {
		chain := strings.Join(a.Conf.chain, " + ")
		fmt.Fprintln(w, strings.Join([]string{name, a.IfName, a.Network, orDash(chain), a.addresses(), yesOrDash(a.DefaultRoute)}, "\t"))
		name = ""
		for _, r := range a.Reasons {
			if why {
				notes = append(notes, fmt.Sprintf("%s %s: %s", p.Pod, a.IfName, r))
			}
		}
	}
	return notes
}

// addresses are those that are known before the network hands any out.
func (a plannedAttachment) addresses() string {
	known := a.IPs
	if a.MAC != "" {
		known = append([]string{a.MAC}, known...)
	}
	return orDash(strings.Join(known, " "))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesOrDash(yes bool) string {
	if yes {
		return "yes"
	}
	return "-"
}
