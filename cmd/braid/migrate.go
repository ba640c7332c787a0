package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/image"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate/draft"
	"braid.dev/braid/internal/migrate/gather"
	"braid.dev/braid/internal/migrate/preflight"
	"braid.dev/braid/internal/migrate/profile/known"
)

// migrateCommand is `braid migrate`: from one CNI to another on a live cluster.
func migrateCommand() *cobra.Command {
	f := &migrateFlags{}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move a live cluster's pods from one CNI to another",
		Long: `A migration moves pods node by node from one CNI to another, while both serve.
Everything is checked before, probed in between, and can be taken back.

  braid migrate install                        the daemons, which change nothing yet
  braid migrate preflight --to cilium          what stands in the way, and the fix
  braid migrate plan --to cilium               every node, step and pod, beforehand
  braid migrate run --to cilium                do it, and follow it
  braid migrate status | pause | resume | abort | rollback
  braid migrate cleanup                        remove what the old CNI leaves
  braid migrate audit                          list what is left of it

The state of a migration is in the cluster: a command that is interrupted stops
nothing, and every command can be given from anywhere.`,
	}
	cmd.PersistentFlags().StringVar(&f.kubeconfig, "kubeconfig", "", "`file` with the access to the cluster (default: $KUBECONFIG or ~/.kube/config)")
	cmd.PersistentFlags().StringVar(&f.image, "image", image.Ref, "`image` of Braid, for its daemons and probes")
	cmd.AddCommand(
		migrateInstall(f), migrateUninstall(f), migratePreflight(f), migrateDump(f), migratePlan(f), migrateRun(f), migrateStatus(f),
		migratePause(f), migrateResume(f), migrateAbort(f), migrateRollback(f), migrateCleanup(f), migrateAudit(f),
	)
	return cmd
}

// migrateFlags are what several of the commands take.
type migrateFlags struct {
	kubeconfig, image string
	dir               string
	output            string

	from, to       string
	manifests      string
	toConf         string
	accept         []string
	preserveSource bool
	canary, batch  int
	pods           string
	evictTimeout   time.Duration
	stepTimeout    time.Duration
	outside        []string

	// objects are those of the manifests, once they have been read: standard input
	// can be read only once.
	objects []*unstructured.Unstructured
}

// wishFlags are those that say what a migration shall be.
func (f *migrateFlags) wishFlags(cmd *cobra.Command) {
	profiles := strings.Join(known.Names(), ", ")
	cmd.Flags().StringVar(&f.from, "from", "", "`profile` of the CNI that pods are on: "+profiles+" (default: detected)")
	cmd.Flags().StringVar(&f.to, "to", "", "`profile` of the CNI to move to: "+profiles)
	cmd.Flags().StringVar(&f.manifests, "manifests", "", "`file or directory` that installs it, or - for standard input; not needed when it is in the cluster")
	cmd.Flags().StringVar(&f.toConf, "to-conf", "", "`file` with the configuration that the nodes shall get (default: the profile's)")
	cmd.Flags().StringSliceVar(&f.accept, "accept", nil, "`codes` of blockers to go on in spite of")
	cmd.Flags().BoolVar(&f.preserveSource, "preserve-source", false, "exempt traffic between old and new pods from NAT, so that servers see the pods' own addresses")
	cmd.Flags().IntVar(&f.canary, "canary", 1, "how many nodes move alone before batches begin")
	cmd.Flags().IntVar(&f.batch, "batch", 1, "how many nodes move at once, of one zone")
	cmd.Flags().StringVar(&f.pods, "pods", string(v1alpha1.MoveAuto), "how pods move: Auto, Evict or Restart (in place)")
	cmd.Flags().DurationVar(&f.evictTimeout, "evict-timeout", 10*time.Minute, "how long evictions of a node may take before it goes back")
	cmd.Flags().DurationVar(&f.stepTimeout, "step-timeout", 5*time.Minute, "how long every other step of a node may take")
	cmd.Flags().StringSliceVar(&f.outside, "outside", nil, "`host:port` outside of the cluster that pods must reach")
	cobra.CheckErr(cmd.MarkFlagRequired("to"))
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return known.Names(), cobra.ShellCompDirectiveNoFileComp
	}
	cobra.CheckErr(errors.Join(cmd.RegisterFlagCompletionFunc("from", complete), cmd.RegisterFlagCompletionFunc("to", complete)))
}

// outputFlag lets a command print JSON.
func (f *migrateFlags) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "output format: json")
}

// print prints v as JSON if that was asked for, and otherwise as text.
func (f *migrateFlags) print(cmd *cobra.Command, v any, text func(io.Writer) error) error {
	switch f.output {
	case "json":
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "":
		return text(cmd.OutOrStdout())
	}
	return fmt.Errorf("output %q: there is only json", f.output)
}

// connect prepares the connection to the cluster.
func (f *migrateFlags) connect() (*kube.Migrations, error) {
	return kube.ConnectMigrations(kube.Config{Kubeconfig: kubeconfig(f.kubeconfig), UserAgent: "braid/" + version})
}

// kubeconfig is where kubectl would look.
func kubeconfig(flag string) string {
	if flag != "" {
		return flag
	}
	if list := filepath.SplitList(os.Getenv("KUBECONFIG")); len(list) > 0 {
		return list[0]
	}
	if home, err := os.UserHomeDir(); err == nil {
		if path := filepath.Join(home, ".kube", "config"); exists(path) {
			return path
		}
	}
	return "" // that of the pod that this runs in
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// cluster reads what a preflight needs: from --dir, or live.
func (f *migrateFlags) cluster(ctx context.Context, cmd *cobra.Command) (preflight.Cluster, error) {
	if f.dir != "" {
		return preflight.ReadDir(f.dir)
	}
	m, err := f.connect()
	if err != nil {
		return preflight.Cluster{}, err
	}
	defer m.Close()
	return live(ctx, m, cmd.ErrOrStderr())
}

// live reads a live cluster and the facts of its nodes.
func live(ctx context.Context, m *kube.Migrations, progress io.Writer) (preflight.Cluster, error) {
	c, err := gather.Objects(ctx, m)
	if err != nil {
		return c, err
	}
	if _, err := m.Get(ctx, kube.Object{APIVersion: "apps/v1", Kind: "DaemonSet", Namespace: "braid-system", Name: "braid-migrate"}); err != nil {
		if errors.Is(err, kube.ErrNotFound) {
			return c, errors.New("facts of the nodes are needed, and braid-migrate is not installed: `braid migrate install` puts it on every node (it changes nothing by itself)")
		}
		return c, err
	}
	return c, gather.Facts(ctx, m, &c, nil, func(text string) { fmt.Fprintln(progress, text) })
}

// tryPaths has the nodes try the ways that the target's tunnel is going to take,
// unless it is there already, and judges once more.
func (f *migrateFlags) tryPaths(ctx context.Context, c *preflight.Cluster, d draft.Draft, w draft.Wish, progress io.Writer) (draft.Draft, error) {
	if f.dir != "" || len(w.Manifests) == 0 || d.To.Tunnel == nil || len(c.Nodes) < 2 {
		return d, nil
	}
	m, err := f.connect()
	if err != nil {
		return d, err
	}
	defer m.Close()
	// While they try, the daemons have the port themselves: of what they see then
	// only the ways count.
	before, ports := c.Facts, []uint16{d.To.Tunnel.Port}
	if err := gather.Facts(ctx, m, c, ports, func(text string) { fmt.Fprintln(progress, text) }); err != nil {
		return d, err
	}
	for name, n := range before {
		n.Paths = c.Facts[name].Paths
		before[name] = n
	}
	c.Facts = before
	return draft.Make(*c, w)
}

// wish is what the flags say.
func (f *migrateFlags) wish(cmd *cobra.Command) (draft.Wish, error) {
	w := draft.Wish{From: f.from, To: f.to, Accept: f.accept, Images: []string{f.image}}
	s := &w.Spec
	s.PreserveSource = f.preserveSource
	s.Strategy.Canary, s.Strategy.Batch, s.Strategy.Pods = f.canary, f.batch, v1alpha1.PodMove(f.pods)
	s.Strategy.EvictTimeout.Duration, s.Strategy.StepTimeout.Duration = f.evictTimeout, f.stepTimeout
	s.Probes.Outside, s.Probes.Image = f.outside, f.image
	if !slices.Contains([]v1alpha1.PodMove{v1alpha1.MoveAuto, v1alpha1.MoveEvict, v1alpha1.MoveRestart}, s.Strategy.Pods) {
		return w, fmt.Errorf("--pods %q: it must be Auto, Evict or Restart", f.pods)
	}
	if f.batch < 1 || f.canary < 0 {
		return w, errors.New("--batch must be 1 or more, --canary 0 or more")
	}
	if f.toConf != "" {
		text, err := os.ReadFile(f.toConf)
		if err != nil {
			return w, err
		}
		w.ConfFile, w.Conf = filepath.Base(f.toConf), string(text)
	}
	var err error
	f.objects, err = readObjects(f.manifests, cmd.InOrStdin())
	for _, o := range f.objects {
		w.Manifests = append(w.Manifests, *o)
	}
	return w, err
}

// readObjects reads a file, all files of a directory, or standard input.
func readObjects(path string, stdin io.Reader) ([]*unstructured.Unstructured, error) {
	switch path {
	case "":
		return nil, nil
	case "-":
		text, err := io.ReadAll(stdin)
		if err != nil {
			return nil, err
		}
		return kube.ParseManifests(text)
	}
	var all []*unstructured.Unstructured
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		isManifest := slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) && filepath.Base(name) != "kustomization.yaml"
		if err != nil || d.IsDir() || !isManifest && name != path {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		objects, err := kube.ParseManifests(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, objects...)
		return nil
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s: there are no manifests (.yaml, .yml, .json)", path)
	}
	return all, err
}

// draft reads the cluster and makes the draft of the wish.
func (f *migrateFlags) draft(cmd *cobra.Command) (draft.Draft, preflight.Cluster, error) {
	w, err := f.wish(cmd)
	if err != nil {
		return draft.Draft{}, preflight.Cluster{}, err
	}
	c, err := f.cluster(cmd.Context(), cmd)
	if err != nil {
		return draft.Draft{}, c, err
	}
	d, err := draft.Make(c, w)
	if err != nil {
		return d, c, err
	}
	d, err = f.tryPaths(cmd.Context(), &c, d, w, cmd.ErrOrStderr())
	return d, c, err
}

func migratePreflight(f *migrateFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "preflight --to PROFILE",
		Short: "Say what stands in the way of a migration, and what would remove it",
		Long: `Preflight checks every condition under which pods of the two CNIs reach each
other while a cluster moves, and the move itself works: in both directions, so that
a rollback is possible, too. It changes nothing.

Each finding has a stable code (docs/migrate-preflight.md), evidence and a fix.
The exit status is 2 when there is a blocker.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, _, err := f.draft(cmd)
			if err != nil {
				return err
			}
			err = f.print(cmd, verdictOf(d), func(w io.Writer) error { return printVerdict(w, d) })
			if err == nil && !verdictOf(d).OK {
				err = exitCode(2)
			}
			return err
		},
	}
	f.wishFlags(cmd)
	f.outputFlag(cmd)
	cmd.Flags().StringVar(&f.dir, "dir", "", "`directory` of a dump (braid migrate dump) to check instead of the live cluster")
	return cmd
}

// verdict is the outcome of a preflight. Its JSON form is a contract.
type verdict struct {
	OK       bool             `json:"ok"`
	Forth    preflight.Report `json:"forth"`
	Rollback preflight.Report `json:"rollback"`
	// Manifests are what has to be changed in them.
	Manifests []string `json:"manifests"`
}

func verdictOf(d draft.Draft) verdict {
	v := verdict{OK: d.Forth.OK && len(d.Changes) == 0, Forth: d.Forth, Rollback: d.Back, Manifests: []string{}}
	for _, c := range d.Changes {
		v.Manifests = append(v.Manifests, c.String())
	}
	return v
}

func printVerdict(w io.Writer, d draft.Draft) error {
	v := verdictOf(d)
	fmt.Fprintf(w, "From %s to %s\n\n", d.From.Profile, d.To.Profile)
	if err := d.Forth.Fprint(w); err != nil {
		return err
	}
	for _, text := range v.Manifests {
		fmt.Fprintf(w, "blocker  manifests: %s\n", text)
	}
	fmt.Fprintf(w, "\nBack from %s to %s\n\n", d.To.Profile, d.From.Profile)
	if err := d.Back.Fprint(w); err != nil {
		return err
	}
	if !v.OK {
		_, err := fmt.Fprintln(w, "\nNot yet: fix the blockers, or accept them by name with --accept CODE.")
		return err
	}
	_, err := fmt.Fprintln(w, "\nNothing is in the way.")
	return err
}

func migrateDump(f *migrateFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "dump DIR",
		Short: "Write everything that a preflight looks at into a directory, for review elsewhere",
		Long:  `Dump writes the cluster's objects (no Secrets) and the facts of its nodes as files. "braid migrate preflight --dir DIR" and "plan --dir DIR" read them.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.cluster(cmd.Context(), cmd)
			if err != nil {
				return err
			}
			if err := preflight.WriteDir(args[0], c); err != nil {
				return err
			}
			for _, p := range c.Problems {
				fmt.Fprintln(cmd.ErrOrStderr(), "not complete:", p)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d nodes, %d pods, facts of %d nodes\n", args[0], len(c.Nodes), len(c.Pods), len(c.Facts))
			return err
		},
	}
}

func migratePlan(f *migrateFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan --to PROFILE",
		Short: "Print every node, step and pod of a migration before anything is touched",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, c, err := f.draft(cmd)
			if err != nil {
				return err
			}
			plan := d.Plan(c, "")
			return f.print(cmd, plan, plan.Fprint)
		},
	}
	f.wishFlags(cmd)
	f.outputFlag(cmd)
	cmd.Flags().StringVar(&f.dir, "dir", "", "`directory` of a dump (braid migrate dump) instead of the live cluster")
	return cmd
}

// asLines lists objects for a person.
func asLines(objects []kube.Object) string {
	var b bytes.Buffer
	for _, o := range objects {
		fmt.Fprintf(&b, "  %s\n", o)
	}
	return b.String()
}
