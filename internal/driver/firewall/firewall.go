// Package firewall lets a container's packets through the node's firewall, in
// process, as the CNI reference plugin of that name does: same configuration,
// same result. Its README says what it builds and what it refuses.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/nft"
)

// undoTimeout bounds the clean-up of an Attach that did not succeed, which
// goes on when the request's own time is over.
const undoTimeout = 10 * time.Second

// Config is what the driver needs to know about the node.
type Config struct {
	// HostNS is the namespace that forwards the containers' packets. Nil is the
	// current one.
	HostNS *netns.NS
}

// New returns the driver for plugin type "firewall".
func New(cfg Config) driver.Driver { return &firewall{Config: cfg} }

type firewall struct {
	Config
	// mu lets one change of nftables happen at a time: what is added depends on
	// what is there.
	mu sync.Mutex
}

// attachment is one attachment while it is worked on.
type attachment struct {
	*firewall
	conf
	spec  driver.Spec
	addrs []netip.Addr
}

// Attach implements driver.Driver.
func (f *firewall) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	c, err := parse(s)
	if err != nil {
		return nil, err
	}
	if s.NetNS == nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	a, err := f.open(c, s)
	if err != nil {
		return nil, err
	}
	if err := a.add(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, a.remove(ctx))
	}
	return s.Prev, nil
}

// Foretell implements driver.Foreteller.
func (*firewall) Foretell(_ context.Context, s driver.Spec) (*current.Result, error) {
	return driver.ForetellPrev(s)
}

// Detach implements driver.Driver.
func (f *firewall) Detach(ctx context.Context, s driver.Spec) error {
	c, err := decode(s)
	if err != nil {
		return nil // Attach refused it
	}
	a, err := f.open(c, s)
	if err != nil {
		return err
	}
	return a.remove(ctx)
}

// Check implements driver.Driver.
func (f *firewall) Check(ctx context.Context, s driver.Spec) error {
	c, err := parse(s)
	if err != nil {
		return err
	}
	if s.NetNS == nil {
		return types.NewError(types.ErrInvalidNetNS, "the container has no network namespace", s.NetNSPath)
	}
	a, err := f.open(c, s)
	if err != nil {
		return err
	}
	backend, err := a.backend()
	if err != nil {
		return err
	}
	switch backend {
	case byFirewalld:
		return a.checkFirewalld(ctx)
	case byIPTables:
		return a.checkIPTables(ctx)
	}
	return a.checkNFTables()
}

func (f *firewall) open(c conf, s driver.Spec) (*attachment, error) {
	addrs, err := addresses(s.Prev)
	return &attachment{firewall: f, conf: c, spec: s, addrs: addrs}, err
}

// key identifies the attachment on the node.
func (a *attachment) key() string { return "braid " + a.spec.ContainerID + "/" + a.spec.IfName }

func (a *attachment) add(ctx context.Context) error {
	backend, err := a.backend()
	if err != nil {
		return err
	}
	switch backend {
	case byFirewalld:
		if err := a.addFirewalld(ctx); err != nil || a.IngressPolicy == policyOpen {
			return err
		}
		// The policy is a matter of iptables, whatever the backend.
		return a.withoutFirewalld().addPolicy(ctx)
	case byIPTables:
		return a.addIPTables(ctx, a.addrs)
	}
	err = a.addNFTables(a.addrs)
	if a.Backend == "" && notHere(err) {
		return a.addIPTables(ctx, a.addrs)
	}
	return err
}

// addPolicy makes only what the ingress policy asks for.
func (a *attachment) addPolicy(ctx context.Context) error {
	backend, err := a.backend()
	if err != nil {
		return err
	}
	if backend == byIPTables {
		return a.addIPTables(ctx, nil)
	}
	return a.addNFTables(nil)
}

func (a *attachment) withoutFirewalld() *attachment {
	b := *a
	b.Backend = byNFTables
	if legacy, err := a.legacy(); err == nil && legacy {
		b.Backend = byIPTables
	}
	return &b
}

// remove removes the rules wherever they may be: which backend made them
// depended on what the node had then, unless the configuration says it.
func (a *attachment) remove(ctx context.Context) error {
	switch a.Backend {
	case byFirewalld:
		return a.removeFirewalld(ctx)
	case byIPTables:
		return a.removeIPTables(ctx)
	case byNFTables:
		return a.removeNFTables()
	}
	errs := []error{a.removeNFTables()}
	legacy, err := a.legacy()
	if errs = append(errs, err); legacy {
		errs = append(errs, a.removeIPTables(ctx))
	}
	if running, err := a.firewalldRuns(); err == nil && running && a.spec.Host != nil {
		errs = append(errs, a.removeFirewalld(ctx))
	}
	return errors.Join(errs...)
}

// backend decides whom to tell. Rules count where the others are: an accept in
// one table does not make up for a drop in another. So it is firewalld where
// that runs, the old iptables where the node uses it, and else the tables of
// the new iptables, which are nftables.
func (a *attachment) backend() (string, error) {
	if a.Backend != "" {
		return a.Backend, nil
	}
	if a.spec.Host != nil {
		if running, err := a.firewalldRuns(); err != nil || running {
			return byFirewalld, err
		}
	}
	legacy, err := a.legacy()
	if legacy {
		return byIPTables, err
	}
	return byNFTables, err
}

// legacy says that the node has filter rules of the old iptables.
func (a *attachment) legacy() (bool, error) {
	found := false
	read := func() error {
		for _, family := range []string{"ip", "ip6"} {
			names, err := os.ReadFile("/proc/thread-self/net/" + family + "_tables_names")
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("look for rules of the old iptables: %w", err)
			}
			found = found || slices.Contains(strings.Fields(string(names)), "filter")
		}
		return nil
	}
	if a.HostNS == nil {
		err := read()
		return found, err
	}
	err := a.HostNS.Do(read)
	return found, err
}

// firewalldRuns tells by firewalld's own table, which is there as long as it
// runs, and needs no bus and no program.
func (a *attachment) firewalldRuns() (bool, error) {
	found := false
	err := nft.Do(a.HostNS, func(conn *nft.Conn) error {
		tables, err := conn.ListTables()
		found = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "firewalld" })
		return err
	})
	if notHere(err) || errors.Is(err, unix.EINVAL) { // EINVAL: no nftables at all
		err = nil
	}
	return found, err
}

// notHere says that the kernel lacks nftables for IP, or the part of it that
// understands the matches of iptables.
func notHere(err error) bool { return nft.Unsupported(err) || errors.Is(err, unix.ENOENT) }
