package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// uninstallCommand takes everything away that Braid has put on a node.
func uninstallCommand() *cobra.Command {
	var f flags
	var shimDir string
	var force, stay bool
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Braid off this node: the runtime calls the default network itself again",
		Long: `Take Braid off this node, once its daemon has been stopped: the runtime's
configuration first, so that the runtime calls the default network itself from
then on, then the plugin, the socket and the records. Pods that run keep their
default network, which its own plugin takes down when they end.

While pods have other networks, nothing is done: only Braid knows how to take
those away. Delete the pods first, or take the networks away from them with
--force.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			u := uninstallation{flags: f, shimDir: shimDir, force: force, out: c.OutOrStdout()}
			if err := u.do(c.Context()); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			if stay {
				return u.keep(c.Context())
			}
			return nil
		},
	}
	c.Flags().StringVar(&f.runDir, "run-dir", "/run/braid", "`directory` of the socket")
	c.Flags().StringVar(&f.stateDir, "state-dir", "/var/lib/braid", "`directory` of the records and notes")
	c.Flags().StringVar(&f.confDir, "cni-conf-dir", "/etc/cni/net.d", "`directory` where the runtime looks for networks")
	c.Flags().StringVar(&f.binDir, "cni-bin-dir", "/opt/cni/bin", "`directories` of the host with plugins, separated by colons")
	c.Flags().StringVar(&shimDir, "shim-dir", "/opt/cni/bin", "`directory` that braid-cni was installed into")
	c.Flags().StringVar(&f.procSysNet, "proc-sys-net", "", "`directory` where the host's /proc/sys/net can be written (default: /proc/sys/net)")
	c.Flags().StringVar(&f.hostLocal, "host-local-dir", "", "`directory` of host-local addresses (default: the reference plugin's)")
	c.Flags().StringVar(&f.hostDirs, "host-dirs", "", "`directories` of the host that are seen here at the same path, separated by colons (default: all)")
	c.Flags().BoolVar(&force, "force", false, "also while pods have networks beside the default one: they lose them")
	c.Flags().BoolVar(&stay, "stay", false, "do not end, and remove what a plugin that still ran left behind: for a DaemonSet")
	return c
}

// uninstallation is what is removed and where.
type uninstallation struct {
	flags
	shimDir string
	force   bool
	out     io.Writer
}

// do checks first and removes then: the configuration before all, because from
// then on no pod needs the rest.
func (u uninstallation) do(ctx context.Context) error {
	records, err := u.records(ctx)
	if err != nil {
		return err
	}
	if err := u.mayGo(records); err != nil {
		return err
	}
	if err := confdir.Withdraw(u.confDir); err != nil {
		return fmt.Errorf("take the configuration out of %s: %w", u.confDir, err)
	}
	u.say("the runtime calls the default network itself: %s is gone", filepath.Join(u.confDir, confdir.OwnFile))
	if err := u.takeDown(ctx, records); err != nil {
		return err
	}
	return u.remove()
}

func (u uninstallation) say(format string, args ...any) {
	fmt.Fprintf(u.out, format+"\n", args...)
}

// records are those of attachments that only Braid can take down: of networks
// beside the default one, and of containers that ended while no daemon was there.
func (u uninstallation) records(ctx context.Context) (ours []store.Record, err error) {
	path := filepath.Join(u.stateDir, store.FileName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := store.Open(ctx, path)
	if errors.Is(err, store.ErrLocked) {
		return nil, errors.New("braidd runs on this node and would put everything back: delete the DaemonSet braidd, or stop the service, first")
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	all, err := s.All()
	var damaged *store.DamagedError
	if errors.As(err, &damaged) {
		u.say("records that cannot be read are ignored: %v", damaged)
	} else if err != nil {
		return nil, err
	}
	ended, err := u.ended()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if !r.Attachment.Default || ended[r.Sandbox.ContainerID+"/"+r.Sandbox.IfName] {
			ours = append(ours, r)
		}
	}
	return ours, nil
}

// ended names the sandboxes that the runtime has deleted and the daemon has not.
func (u uninstallation) ended() (map[string]bool, error) {
	notes, _, err := wire.ReadNotes(u.notes())
	ended := map[string]bool{}
	for _, n := range notes {
		ended[n.Request.ContainerID+"/"+n.Request.IfName] = true
	}
	return ended, err
}

// mayGo refuses while pods that run would lose something.
func (u uninstallation) mayGo(records []store.Record) error {
	ended, err := u.ended()
	if err != nil || u.force {
		return err
	}
	var pods []string
	for _, r := range records {
		sb := r.Sandbox
		if ended[sb.ContainerID+"/"+sb.IfName] {
			continue
		}
		name := "container " + sb.ContainerID
		if sb.Pod.Name != "" {
			name = sb.Pod.Namespace + "/" + sb.Pod.Name
		}
		pods = append(pods, fmt.Sprintf("%s has %s (%s)", name, r.Attachment.IfName, r.Attachment.Network))
	}
	if len(pods) == 0 {
		return nil
	}
	const most = 10
	more := ""
	if len(pods) > most {
		more = fmt.Sprintf(", and %d more", len(pods)-most)
		pods = pods[:most]
	}
	return fmt.Errorf("pods still have networks that only Braid can take away: %s%s; start braidd again and delete them first, or use --force, and they lose these networks now",
		strings.Join(pods, ", "), more)
}

// takeDown detaches what only Braid can. The containers' namespaces cannot be
// reached from here, and programs cannot be run: what is on the node is removed,
// and what could not be is named.
func (u uninstallation) takeDown(ctx context.Context, records []store.Record) error {
	if len(records) == 0 {
		return nil
	}
	conf := defaults()
	a := attacher(u.flags, conf, nil)
	var errs []error
	for _, r := range slices.Backward(records) {
		if err := a.DelUnrecorded(ctx, r, attach.Reach{Path: r.Sandbox.Path}); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", r.Sandbox.ContainerID, err))
		}
	}
	if err := errors.Join(errs...); err != nil && !u.force {
		return err
	} else if err != nil {
		u.say("left on the node, because only a running braidd could take it away: %v", err)
	}
	return nil
}

// remove removes the files. The state of a migration (braid migrate cleanup)
// stays.
func (u uninstallation) remove() error {
	err := os.Remove(filepath.Join(u.shimDir, plan.OwnType))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, empty(u.runDir), empty(u.stateDir, "migrate"))
}

// empty removes what is in a directory but for some names, and the directory
// when nothing is left in it and it is no mount point. (Of one below a root that
// cannot be written, as in a container, the kernel says just that.)
func empty(dir string, but ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !slices.Contains(but, e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	err = os.Remove(dir)
	for _, stays := range []error{syscall.EBUSY, syscall.EROFS, syscall.ENOTEMPTY, fs.ErrExist} {
		if errors.Is(err, stays) {
			err = nil
		}
	}
	return errors.Join(append(errs, err)...)
}

// keepGone is how often what came back is removed: a shim that was called
// before the configuration went may leave a note seconds later.
const keepGone = 10 * time.Second

// keep waits for the end of ctx.
func (u uninstallation) keep(ctx context.Context) error {
	u.say("Braid is off this node")
	tick := time.NewTicker(keepGone)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := u.remove(); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
