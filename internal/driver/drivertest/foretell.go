package drivertest

import (
	"fmt"
	"net"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

// foretold: what a driver tells ahead comes true, and to tell it makes nothing.
func foretold(t *testing.T, s Subject) {
	everyWay(t, s, func(t *testing.T, v Variant, f family) {
		w, p, before := settled(t, s, v.Keys)
		d, ok := w.Driver.(driver.Foreteller)
		if !ok {
			t.Skip("the driver tells nothing ahead")
		}
		spec := w.Spec(p, s.conf(v.Keys, f, p.N))
		spec.MAC = net.HardwareAddr{2, 0, 0, 0, 7, byte(p.N)}
		told, err := d.Foretell(t.Context(), spec)
		try(t, err)
		w.wantText(t, before, p)
		spec = w.Attached(t, spec)
		same(t, "what was told ahead", ofPod(told), ofPod(spec.Prev))
		try(t, w.Driver.Detach(t.Context(), spec))
		w.wantText(t, before, p)
	})
}

// ofPod is what a result says of the pod.
func ofPod(r *current.Result) string {
	var b strings.Builder
	for _, l := range r.Interfaces {
		if l.Sandbox != "" {
			fmt.Fprintf(&b, "interface %s %s mtu %d\n", l.Name, l.Mac, l.Mtu)
		}
	}
	for _, ip := range r.IPs {
		name := "nobody"
		if ip.Interface != nil && *ip.Interface < len(r.Interfaces) {
			name = r.Interfaces[*ip.Interface].Name
		}
		fmt.Fprintf(&b, "address %s gateway %s of %s\n", ip.Address.String(), ip.Gateway, name)
	}
	for _, route := range r.Routes {
		fmt.Fprintf(&b, "route %s\n", route)
	}
	fmt.Fprintf(&b, "dns %+v\n", r.DNS)
	return b.String()
}
