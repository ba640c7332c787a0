package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/deploy"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/draft"
	"braid.dev/braid/internal/migrate/probe/round"
)

// rolloutLimit is how long what is installed may take to run everywhere.
const rolloutLimit = 5 * time.Minute

func migrateInstall(f *migrateFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "install",
		Short: "Put the daemons of a migration on every node; they change nothing by themselves",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			return f.install(cmd.Context(), m, cmd.ErrOrStderr())
		},
	}
}

func (f *migrateFlags) install(ctx context.Context, m *kube.Migrations, out io.Writer) error {
	text, err := deploy.Migrate(f.image)
	if err != nil {
		return err
	}
	objects, err := kube.ParseManifests(text)
	if err != nil {
		return err
	}
	applied, err := m.Apply(ctx, objects, kube.ApplyOptions{Force: true})
	for _, a := range applied {
		fmt.Fprintf(out, "%s %s\n", a.Object, a.Change)
	}
	if err != nil {
		return err
	}
	return rollout(ctx, m, applied, out)
}

// rollout waits until workloads run everywhere.
func rollout(ctx context.Context, m *kube.Migrations, applied []kube.Applied, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, rolloutLimit)
	defer cancel()
	for _, a := range applied {
		if !slices.Contains([]string{"DaemonSet", "Deployment", "StatefulSet"}, a.Kind) {
			continue
		}
		if err := m.WaitRollout(ctx, a.Object, func(text string) { fmt.Fprintf(out, "%s: %s\n", a.Object, text) }); err != nil {
			return err
		}
	}
	return nil
}

func migrateUninstall(f *migrateFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the daemons of a migration that is over, with its objects",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			if current, err := f.current(cmd.Context(), m); err == nil && !slices.Contains([]v1alpha1.Phase{v1alpha1.PhaseDone, v1alpha1.PhaseClean}, current.Status.Phase) {
				return fmt.Errorf("migration %s is %s: end it first (abort, rollback, or let it finish)", current.Name, current.Status.Phase)
			}
			text, err := deploy.Migrate(f.image)
			if err != nil {
				return err
			}
			objects, err := kube.ParseManifests(text)
			if err != nil {
				return err
			}
			var names []kube.Object
			for _, o := range objects {
				if o.GetKind() == "Namespace" && o.GetName() != kube.MigrateNamespace {
					continue // Braid's own is there with Braid
				}
				names = append(names, kube.Object{APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()})
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), rolloutLimit)
			defer cancel()
			return m.Uninstall(ctx, names, func(gone []kube.Object) { fmt.Fprint(cmd.ErrOrStderr(), asLines(gone)) })
		},
	}
}

func migrateRun(f *migrateFlags) *cobra.Command {
	var dryRun, detach, yes bool
	cmd := &cobra.Command{
		Use:   "run --to PROFILE",
		Short: "Migrate: check, install the target beside the source, move every node, and follow it",
		Long: `Run checks everything once more, applies the target's manifests, if there are any,
and makes a Migration object, which the cluster's own daemons carry out. Then it
follows that. Interrupting this command stops nothing: "braid migrate status
--follow" goes on, "pause", "abort" and "rollback" end it.

With --dry-run it prints the plan and what would be applied, and changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, c, err := f.draft(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if err := printVerdict(out, d); err != nil {
				return err
			}
			fmt.Fprintln(out)
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			if err := d.Plan(c, leader(cmd.Context(), m)).Fprint(out); err != nil {
				return err
			}
			if !verdictOf(d).OK {
				return exitCode(2)
			}
			// Each migration keeps its backups by its name.
			d.Migration.Name += time.Now().UTC().Format("-20060102-150405")
			if dryRun {
				return f.begin(cmd.Context(), m, d, cmd, true)
			}
			if !yes {
				if err := confirm(cmd, "Begin? [y/N] "); err != nil {
					return err
				}
			}
			if err := f.begin(cmd.Context(), m, d, cmd, false); err != nil || detach {
				return err
			}
			return follow(cmd.Context(), m, d.Migration.Name, out)
		},
	}
	f.wishFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the plan, and change nothing")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not follow the migration")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// leader is the node of the daemon that leads, which moves last; empty when that
// is not known.
func leader(ctx context.Context, m *kube.Migrations) string {
	node, err := m.Leader(ctx)
	if err != nil {
		return ""
	}
	return node
}

// begin installs the target and makes the Migration.
func (f *migrateFlags) begin(ctx context.Context, m *kube.Migrations, d draft.Draft, cmd *cobra.Command, dryRun bool) error {
	there, err := m.ListMigrations(ctx)
	if err != nil {
		return err
	}
	if len(there) > 0 {
		return fmt.Errorf("there is migration %s (%s) already: `braid migrate status` shows it, `resume` goes on with it, `kubectl delete migration %s` forgets one that is over",
			there[0].Name, there[0].Status.Phase, there[0].Name)
	}
	applied, err := m.Apply(ctx, f.objects, kube.ApplyOptions{DryRun: dryRun})
	for _, a := range applied {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", a.Object, a.Change)
	}
	if err != nil || dryRun {
		return err
	}
	if err := rollout(ctx, m, applied, cmd.ErrOrStderr()); err != nil {
		return err
	}
	_, err = m.CreateMigration(ctx, &d.Migration)
	return err
}

// confirm asks a person.
func confirm(cmd *cobra.Command, question string) error {
	fmt.Fprint(cmd.ErrOrStderr(), question)
	var answer string
	if _, err := fmt.Fscanln(cmd.InOrStdin(), &answer); err != nil || !strings.EqualFold(answer, "y") && !strings.EqualFold(answer, "yes") {
		return errors.New("not begun; --yes begins without asking")
	}
	return nil
}

// current is the migration of the cluster.
func (f *migrateFlags) current(ctx context.Context, m *kube.Migrations) (*v1alpha1.Migration, error) {
	list, err := m.ListMigrations(ctx)
	if err != nil {
		return nil, err
	}
	if current := migrate.Current(list); current != nil {
		return current, nil
	}
	return nil, errors.New("there is no migration; `braid migrate run --to PROFILE` makes one")
}

func migrateStatus(f *migrateFlags) *cobra.Command {
	var following bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where a migration is, node by node, and what its probes have found",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			o, err := f.current(cmd.Context(), m)
			if err != nil {
				return err
			}
			if following {
				return follow(cmd.Context(), m, o.Name, cmd.OutOrStdout())
			}
			parts, err := m.ListNodeMigrations(cmd.Context())
			if err != nil {
				return err
			}
			all := struct {
				Migration *v1alpha1.Migration      `json:"migration"`
				Nodes     []v1alpha1.NodeMigration `json:"nodes"`
			}{o, withoutFacts(parts)}
			return f.print(cmd, all, func(w io.Writer) error { return printMigration(w, o, parts) })
		},
	}
	f.outputFlag(cmd)
	cmd.Flags().BoolVarP(&following, "follow", "f", false, "go on until the migration is done or stops")
	return cmd
}

// withoutFacts leaves out what is large and what nobody asks a status for.
func withoutFacts(parts []v1alpha1.NodeMigration) []v1alpha1.NodeMigration {
	parts = slices.Clone(parts)
	for i := range parts {
		parts[i].Status.Facts = nil
	}
	return parts
}

func printMigration(out io.Writer, o *v1alpha1.Migration, parts []v1alpha1.NodeMigration) error {
	fmt.Fprintf(out, "%s: %s → %s, goal %s\n%s (%s): %s\n\n", o.Name, o.Spec.From.Profile, o.Spec.To.Profile, o.Spec.Goal,
		o.Status.Phase, o.Status.Moved, o.Status.Message)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tON\tSTEP\tRUNTIME\tOLD\tNEW\tWAITS FOR")
	for _, n := range o.Status.Nodes {
		var st v1alpha1.NodeMigrationStatus
		if i := slices.IndexFunc(parts, func(p v1alpha1.NodeMigration) bool { return p.Name == n.Name }); i >= 0 {
			st = parts[i].Status
		}
		on := string(n.On)
		if n.On != n.Want {
			on = string(n.On) + "→" + string(n.Want)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", n.Name, on, n.Step, st.Runtime, st.OnSource, st.OnTarget, n.Message)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range interesting(o.Status) {
		fmt.Fprintln(out)
		if err := round.Fprint(out, r); err != nil {
			return err
		}
	}
	return nil
}

// interesting are the rounds of probes that tell a story: before the first node
// moved, the one between in which most were asked, and the latest.
func interesting(st v1alpha1.MigrationStatus) []v1alpha1.RoundSummary {
	rounds := slices.DeleteFunc(slices.Clone(st.Rounds), func(r v1alpha1.RoundSummary) bool { return r.Pending })
	if len(rounds) == 0 {
		return nil
	}
	tell := []int64{st.Before, rounds[len(rounds)-1].Round}
	most := slices.MaxFunc(rounds, func(a, b v1alpha1.RoundSummary) int { return cmp.Compare(a.Asked, b.Asked) })
	if most.Round > st.Before {
		tell = append(tell, most.Round)
	}
	return slices.DeleteFunc(rounds, func(r v1alpha1.RoundSummary) bool { return !slices.Contains(tell, r.Round) })
}

// follow tells of every change until the migration is done, or stops.
func follow(ctx context.Context, m *kube.Migrations, name string, out io.Writer) error {
	view := m.FollowerView()
	defer view.Follow(ctx)()
	begun, said := time.Now(), map[string]string{}
	for {
		snap := view.Snapshot()
		i := slices.IndexFunc(snap.Migrations, func(o v1alpha1.Migration) bool { return o.Name == name })
		if i >= 0 && snap.Migrations[i].Status.ObservedGeneration == snap.Migrations[i].Generation {
			o := &snap.Migrations[i]
			for _, line := range news(o, said) {
				fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(begun).Seconds(), line)
			}
			switch o.Status.Phase {
			case v1alpha1.PhaseDone, v1alpha1.PhaseClean:
				if o.Spec.Clean && o.Status.Phase == v1alpha1.PhaseDone {
					break // the cleaning goes on
				}
				return printMigration(out, o, snap.NodeMigrations)
			case v1alpha1.PhaseStopped:
				if err := printMigration(out, o, snap.NodeMigrations); err != nil {
					return err
				}
				return fmt.Errorf("migration %s stopped: %s (`braid migrate resume` tries again, `rollback` goes back)", name, o.Status.Message)
			}
		}
		select {
		case <-view.Changed():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// news are the lines that have changed since they were said.
func news(o *v1alpha1.Migration, said map[string]string) []string {
	var lines []string
	tell := func(key, text string) {
		if said[key] != text {
			said[key] = text
			lines = append(lines, text)
		}
	}
	tell("", fmt.Sprintf("%s (%s) %s", o.Status.Phase, o.Status.Moved, o.Status.Message))
	for _, n := range o.Status.Nodes {
		tell("node "+n.Name, fmt.Sprintf("%s: %s→%s %s", n.Name, n.On, n.Want, n.Step))
	}
	for _, r := range o.Status.Rounds {
		if !r.Pending {
			tell(fmt.Sprint("round ", r.Round), fmt.Sprintf("probes (%s): %d asked, %d failed", r.When, r.Asked, r.Failed))
		}
	}
	return lines
}

// change is a command that changes the migration's spec.
func (f *migrateFlags) change(use, short string, args cobra.PositionalArgs, edit func(*v1alpha1.MigrationSpec, []string) error) *cobra.Command {
	var following bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			o, err := f.current(cmd.Context(), m)
			if err != nil {
				return err
			}
			if _, err := m.ChangeMigration(cmd.Context(), o.Name, func(s *v1alpha1.MigrationSpec) error { return edit(s, args) }); err != nil {
				return err
			}
			if !following {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: as asked; `braid migrate status --follow` shows it\n", o.Name)
				return err
			}
			return follow(cmd.Context(), m, o.Name, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVarP(&following, "follow", "f", false, "go on until that is done")
	return cmd
}

func migratePause(f *migrateFlags) *cobra.Command {
	return f.change("pause", "Stop before the next step", cobra.NoArgs, func(s *v1alpha1.MigrationSpec, _ []string) error {
		s.Paused = true
		return nil
	})
}

func migrateResume(f *migrateFlags) *cobra.Command {
	return f.change("resume", "Go on after a pause, or after the migration has stopped by itself", cobra.NoArgs, func(s *v1alpha1.MigrationSpec, _ []string) error {
		s.Paused = false
		s.Resumes++
		return nil
	})
}

func migrateAbort(f *migrateFlags) *cobra.Command {
	return f.change("abort", "Bring nodes in the middle of their move back, and leave the others where they are", cobra.NoArgs, func(s *v1alpha1.MigrationSpec, _ []string) error {
		s.Goal, s.Paused = v1alpha1.Stay, false
		return nil
	})
}

func migrateRollback(f *migrateFlags) *cobra.Command {
	var nodes []string
	cmd := f.change("rollback", "Move all nodes back to the source, or with --node only those", cobra.NoArgs, func(s *v1alpha1.MigrationSpec, _ []string) error {
		if s.Clean {
			return errors.New("the old network has been cleaned up; install it again and migrate to it")
		}
		s.Paused = false
		if len(nodes) == 0 {
			s.Goal = v1alpha1.Source
			return nil
		}
		for _, n := range nodes {
			if !slices.Contains(s.Hold, n) {
				s.Hold = append(s.Hold, n)
			}
		}
		return nil
	})
	cmd.Flags().StringSliceVar(&nodes, "node", nil, "only these `nodes`")
	return cmd
}

func migrateCleanup(f *migrateFlags) *cobra.Command {
	var yes, dryRun bool
	var manifests string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what the network that was left behind leaves, on all nodes",
		Long: `Cleanup removes the old CNI's own rules (in both backends of iptables and in
nftables), links, routes, records and files, and nothing else: what is still in use
stays and is named. A rollback is not possible afterwards.

Its agents have to be gone, or they would make again what is removed: --manifests
deletes what installed them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			ctx := cmd.Context()
			o, err := f.current(ctx, m)
			if err != nil {
				return err
			}
			if o.Status.Phase != v1alpha1.PhaseDone && o.Status.Phase != v1alpha1.PhaseClean {
				return fmt.Errorf("migration %s is %s: there is nothing to clean up before all nodes are at its goal", o.Name, o.Status.Phase)
			}
			objects, err := readObjects(manifests, cmd.InOrStdin())
			if err != nil {
				return err
			}
			var names []kube.Object
			for _, u := range objects {
				names = append(names, kube.Object{APIVersion: u.GetAPIVersion(), Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName()})
			}
			if dryRun {
				fmt.Fprintf(cmd.OutOrStdout(), "would delete:\n%s", asLines(names))
				return f.audit(ctx, m, o, cmd)
			}
			if !yes {
				if err := confirm(cmd, "A rollback is not possible afterwards. Clean up? [y/N] "); err != nil {
					return err
				}
			}
			gone, err := m.Delete(ctx, names)
			fmt.Fprint(cmd.ErrOrStderr(), asLines(gone))
			if err != nil {
				return err
			}
			if err := m.WaitGone(ctx, names); err != nil {
				return err
			}
			if _, err := m.ChangeMigration(ctx, o.Name, func(s *v1alpha1.MigrationSpec) error { s.Clean = true; return nil }); err != nil {
				return err
			}
			if err := follow(ctx, m, o.Name, cmd.OutOrStdout()); err != nil {
				return err
			}
			return f.audit(ctx, m, o, cmd)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "list what would go, and change nothing")
	cmd.Flags().StringVar(&manifests, "manifests", "", "`file or directory` that installed the old CNI, or -: its objects are deleted first")
	return cmd
}

func migrateAudit(f *migrateFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "List what is left of the network that was left behind; exit 2 if there is anything",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.connect()
			if err != nil {
				return err
			}
			defer m.Close()
			o, err := f.current(cmd.Context(), m)
			if err != nil {
				return err
			}
			return f.audit(cmd.Context(), m, o, cmd)
		},
	}
	f.outputFlag(cmd)
	return cmd
}

// auditLimit is how long nodes may take to list what is left.
const auditLimit = 2 * time.Minute

// audit has every node list what is left, and prints it.
func (f *migrateFlags) audit(ctx context.Context, m *kube.Migrations, o *v1alpha1.Migration, cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(ctx, auditLimit)
	defer cancel()
	o, err := m.ChangeMigration(ctx, o.Name, func(s *v1alpha1.MigrationSpec) error { s.Audits++; return nil })
	if err != nil {
		return err
	}
	reports, err := waitAudit(ctx, m, o)
	if err != nil {
		return err
	}
	left := 0
	for _, r := range reports {
		left += len(r.Items)
	}
	err = f.print(cmd, reports, func(w io.Writer) error { return printAudit(w, o, reports) })
	if err == nil && left > 0 {
		err = exitCode(2)
	}
	return err
}

// waitAudit waits for the answers of all nodes, by their names.
func waitAudit(ctx context.Context, m *kube.Migrations, o *v1alpha1.Migration) (map[string]v1alpha1.LeftoverReport, error) {
	view := m.FollowerView()
	defer view.Follow(ctx)()
	for {
		reports, missing := map[string]v1alpha1.LeftoverReport{}, []string{}
		parts := view.Snapshot().NodeMigrations
		for _, n := range o.Status.Nodes {
			i := slices.IndexFunc(parts, func(p v1alpha1.NodeMigration) bool { return p.Name == n.Name })
			if i < 0 || parts[i].Status.Leftovers == nil || parts[i].Status.Leftovers.Audits != o.Spec.Audits {
				missing = append(missing, n.Name)
				continue
			}
			reports[n.Name] = *parts[i].Status.Leftovers
		}
		if len(missing) == 0 {
			return reports, nil
		}
		select {
		case <-view.Changed():
		case <-ctx.Done():
			return nil, fmt.Errorf("audit of %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
	}
}

func printAudit(out io.Writer, o *v1alpha1.Migration, reports map[string]v1alpha1.LeftoverReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, n := range o.Status.Nodes {
		r := reports[n.Name]
		fmt.Fprintf(w, "%s\tremoved %d, left %d, of others looked at and kept %d, of these changed %d\n", n.Name, r.Cleaned, len(r.Items), r.Kept, len(r.Changed))
		for _, item := range r.Items {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", item.Kind, item.Name, item.InUse)
		}
		for _, text := range r.Changed {
			fmt.Fprintf(w, "  changed meanwhile\t%s\n", text)
		}
	}
	return w.Flush()
}
