package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
)

// firewall-cmd is how a program of the host speaks with firewalld; braidd
// itself has no system bus.
func (a *attachment) firewallCmd(ctx context.Context, args ...string) error {
	if a.spec.Host == nil {
		return types.NewError(types.ErrTryAgainLater, "firewalld: nobody is connected who could run firewall-cmd on the host", "")
	}
	_, err := a.spec.Host.Exec(ctx, driver.Program{Name: "firewall-cmd", Args: append([]string{"--zone=" + a.Zone}, args...)})
	return err
}

func source(addr netip.Addr) string { return fmt.Sprintf("%s/%d", addr, addr.BitLen()) }

// addFirewalld makes the container's addresses sources of the zone. One that
// is there already is only a warning to firewall-cmd.
func (a *attachment) addFirewalld(ctx context.Context) error {
	for _, addr := range a.addrs {
		if err := a.firewallCmd(ctx, "--add-source="+source(addr)); err != nil {
			return fmt.Errorf("add %s to zone %s of firewalld: %w", addr, a.Zone, err)
		}
	}
	return nil
}

// removeFirewalld makes the zone forget the addresses, as far as they are
// known: without a result nothing tells which they were.
func (a *attachment) removeFirewalld(ctx context.Context) error {
	for _, addr := range a.addrs {
		there, err := a.inZone(ctx, addr)
		if err == nil && there {
			err = a.firewallCmd(ctx, "--remove-source="+source(addr))
		}
		if err != nil {
			return fmt.Errorf("remove %s from zone %s of firewalld: %w", addr, a.Zone, err)
		}
	}
	return nil
}

func (a *attachment) checkFirewalld(ctx context.Context) error {
	for _, addr := range a.addrs {
		there, err := a.inZone(ctx, addr)
		if err != nil {
			return fmt.Errorf("look for %s in zone %s of firewalld: %w", addr, a.Zone, err)
		}
		if !there {
			return fmt.Errorf("zone %s of firewalld lacks source %s", a.Zone, addr)
		}
	}
	return nil
}

// inZone asks for a source; firewall-cmd answers with its exit code.
func (a *attachment) inZone(ctx context.Context, addr netip.Addr) (bool, error) {
	const no, notRunning = 1, 252
	err := a.firewallCmd(ctx, "--query-source="+source(addr))
	var exit *driver.ExitError
	if errors.As(err, &exit) && (exit.Code == no || exit.Code == notRunning) {
		return false, nil // firewalld that ended has forgotten all sources
	}
	return err == nil, err
}
