package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/driver/sbr"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/static"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/status"
	"braid.dev/braid/internal/store"
)

// exclusive is a driver that insists on its default route being the only one,
// as ptp and Cilium do: it fails when there is one.
type exclusive struct{ driver.Driver }

func (e exclusive) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	res, err := e.Driver.Attach(ctx, s)
	if err != nil {
		return nil, err
	}
	h, err := rtnl.Open(s.NetNS)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.Link(s.IfName)
	if err != nil {
		return nil, err
	}
	gw := res.IPs[0].Gateway
	via, _ := netip.AddrFromSlice(gw)
	r := rtnl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: via.Unmap(), Link: link.Index}
	if err := h.AddRoute(r); err != nil {
		return nil, err
	}
	res.Routes = append(res.Routes, &types.Route{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, GW: gw})
	return res, nil
}

// pod is a container in a namespace of a real kernel.
type pod struct {
	t testing.TB
	*Attacher
	host, ns *netns.NS
	path     string
	store    *store.Store
}

func newPod(t testing.TB) *pod {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS, kerneltest.Veth, kerneltest.Bridge)
	p := &pod{t: t, host: kerneltest.NewNS(t)}
	p.ns, p.path = kerneltest.NewNamedNS(t)
	var err error
	if p.store, err = store.Open(t.Context(), filepath.Join(t.TempDir(), store.FileName)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.store.Close() })
	d := bridge.New(bridge.Config{HostNS: p.host})
	p.Attacher = &Attacher{
		Drivers: map[string]driver.Driver{"bridge": d, "exclusive": exclusive{d}, "sbr": sbr.New()},
		IPAM:    map[string]ipam.Plugin{"static": static.New()},
		Store:   p.store,
	}
	return p
}

// networks of the tests, by name.
var networks = map[string]string{
	"pods": `{"cniVersion":"1.0.0","name":"pods","type":"bridge","bridge":"braidbr0","isDefaultGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"10.244.1.5/24"},{"address":"fd00:244::5/64"}],"routes":[{"dst":"10.244.0.0/16"}]}}`,
	"pods4": `{"cniVersion":"1.0.0","name":"pods4","type":"bridge","bridge":"braidbr0","isDefaultGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"10.244.1.5/24"}]}}`,
	"no-default": `{"cniVersion":"1.0.0","name":"no-default","type":"bridge","bridge":"braidbr0","isGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"10.244.1.5/24"}]}}`,
	"lan": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr1","isDefaultGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"192.168.7.5/24"},{"address":"fd00:7::5/64"}],"routes":[{"dst":"192.168.0.0/16"}]}}`,
	"lan6": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr2","isDefaultGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"fd00:6::5/64"}]}}`,
	"gateway-only": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr3","ipam":{"type":"static",
		"addresses":[{"address":"192.168.3.5/24","gateway":"192.168.3.1"}]}}`,
	"plain": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr4","ipam":{"type":"static",
		"addresses":[{"address":"192.168.4.5/24"}]}}`,
	"exclusive": `{"cniVersion":"1.0.0","type":"exclusive","bridge":"braidbr5","ipam":{"type":"static",
		"addresses":[{"address":"192.168.5.5/24","gateway":"192.168.5.1"}]}}`,
	"wide": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr6","ipam":{"type":"static",
		"addresses":[{"address":"10.1.2.3/8"}]}}`,
	"by-source": `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"braidbr1","isDefaultGateway":true,"ipam":{"type":"static",
		"addresses":[{"address":"192.168.7.5/24"},{"address":"fd00:7::5/64"}]}},{"type":"sbr"}]}`,
	"two-hops": `{"cniVersion":"1.0.0","type":"bridge","bridge":"braidbr7","ipam":{"type":"static",
		"addresses":[{"address":"192.168.8.5/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"192.168.8.1"},{"dst":"0.0.0.0/0","gw":"192.168.8.2"}]}}`,
}

// plan is what plan.Build decides for a pod with this default network and this
// networks annotation.
func (p *pod) plan(def, annotation string) (plan.Plan, error) {
	p.t.Helper()
	n, err := plan.ParseNetwork([]byte(networks[def]), def)
	if err != nil {
		p.t.Fatal(err)
	}
	return plan.Build(plan.Input{
		IfName: "eth0", Default: n,
		Pod: plan.Pod{Namespace: "default", Name: "p", Annotations: map[string]string{plan.NetworksAnnotation: annotation}},
		Definition: func(namespace, name string) (plan.Definition, bool) {
			return plan.Definition{Namespace: namespace, Name: name, Config: networks[name]}, true
		},
	})
}

func (p *pod) sandbox() store.Sandbox {
	id, err := p.ns.ID()
	if err != nil {
		p.t.Fatal(err)
	}
	return store.Sandbox{ContainerID: "c", IfName: "eth0", NetNS: p.path, NSID: id}
}

// defaults are the default routes in the kernel, such as "eth0 10.244.1.1".
func (p *pod) defaults() []string {
	p.t.Helper()
	h, err := rtnl.Open(p.ns)
	if err != nil {
		p.t.Fatal(err)
	}
	defer h.Close()
	routes, err := h.Routes()
	if err != nil {
		p.t.Fatal(err)
	}
	var list []string
	for _, r := range routes {
		if r.Dst.Bits() == 0 && r.Table == rtnl.MainTable {
			link, err := h.LinkByIndex(r.Link)
			if err != nil {
				p.t.Fatal(err)
			}
			list = append(list, link.Name+" "+r.Via.String())
		}
	}
	slices.Sort(list)
	return list
}

// told are the default routes in the results, in the same form, and in the
// network status.
func told(done []Attached) (results, statuses []string) {
	var outcomes []status.Outcome
	for _, d := range done {
		outcomes = append(outcomes, status.Outcome{Attachment: d.Attachment, Result: d.Result})
		for _, r := range d.Result.Routes {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
			gw := r.GW
			if gw == nil { // that of the first address of the family
				for _, ip := range slices.Backward(d.Result.IPs) {
					if (ip.Address.IP.To4() == nil) == (r.Dst.IP.To4() == nil) {
						gw = ip.Gateway
					}
				}
			}
			results = append(results, d.IfName+" "+gw.String())
		}
	}
	for _, e := range status.Entries(outcomes) {
		for _, gw := range e.Gateway {
			statuses = append(statuses, e.Interface+" "+gw)
		}
	}
	slices.Sort(results)
	slices.Sort(statuses)
	return results, statuses
}

// watched is a driver that notes the pod's default routes as it finds them.
type watched struct {
	driver.Driver
	pod   *pod
	found map[string][]string // by interface name
}

func (w watched) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	w.found[s.IfName] = w.pod.defaults()
	return w.Driver.Attach(ctx, s)
}

// TestDefaultRouteStaysWhileNetworksAreMadeThatBringNone: to take it out and to
// put it in again costs every pod time for nothing.
func TestDefaultRouteStaysWhileNetworksAreMadeThatBringNone(t *testing.T) {
	for annotation, stays := range map[string]bool{
		"plain,wide": true, "gateway-only": true,
		"lan": false, "plain,two-hops": false, "exclusive,plain": false, "by-source": false,
		`[{"name":"plain","default-route":["192.168.4.1"]}]`: false,
	} {
		p := newPod(t)
		w := watched{p.Drivers["bridge"], p, map[string][]string{}}
		p.Drivers["bridge"] = w
		pl, err := p.plan("pods4", annotation)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Add(t.Context(), p.sandbox(), pl, Reach{NS: p.ns}); err != nil {
			t.Fatal(err)
		}
		for ifName, found := range w.found {
			if want := stays && ifName != "eth0"; (len(found) > 0) != want {
				t.Errorf("%s: as %s is made there is %v", annotation, ifName, found)
			}
		}
	}
}

func TestEveryFamilyHasOneDefaultRoute(t *testing.T) {
	for _, c := range []struct {
		name, def, networks string
		want                []string
		notes               []string // words of them, by attachment
	}{
		{"alone", "pods", "", []string{"eth0 10.244.1.1", "eth0 fd00:244::1"}, nil},
		{"default network first", "pods", "lan", []string{"eth0 10.244.1.1", "eth0 fd00:244::1"},
			[]string{"", "by 192.168.7.1 is not kept, as that of eth0 comes first; its default route by fd00:7::1 is not kept"}},
		{"of each family the first that brings one", "pods4", "lan", []string{"eth0 10.244.1.1", "net1 fd00:7::1"},
			[]string{"", "by 192.168.7.1 is not kept"}},
		{"default network brings none", "no-default", "plain,lan,lan6", []string{"net2 192.168.7.1", "net2 fd00:7::1"},
			[]string{"", "", "192.168.0.0/16 covers 192.168.4.0/24 of net1", "by fd00:6::1 is not kept, as that of net2 comes first"}},
		{"asked for, both families", "pods", `[{"name":"lan","default-route":["192.168.7.9","fd00:7::9"]}]`, []string{"net1 192.168.7.9", "net1 fd00:7::9"},
			[]string{"by 10.244.1.1 is not kept, as that of net1 is asked for by the pod; its default route by fd00:244::1", "default route by 192.168.7.9, as the pod asks"}},
		{"asked for, IPv4 only", "pods", `[{"name":"lan","default-route":["192.168.7.1"]}]`, []string{"eth0 fd00:244::1", "net1 192.168.7.1"}, nil},
		{"asked for, IPv6 only, of the second", "pods", `[{"name":"lan"},{"name":"lan6","default-route":["fd00:6::9"]}]`, []string{"eth0 10.244.1.1", "net2 fd00:6::9"}, nil},
		{"asked for without a gateway", "pods", `[{"name":"lan","default-route":[]}]`, []string{"net1 192.168.7.1", "net1 fd00:7::1"}, nil},
		{"asked for, by the gateway of an address", "pods4", `[{"name":"gateway-only","default-route":[]}]`, []string{"net1 192.168.3.1"}, nil},
		{"asked for where none is brought", "pods4", `[{"name":"plain","default-route":["192.168.4.1"]}]`, []string{"net1 192.168.4.1"}, nil},
		{"a plugin that would fail beside another", "pods4", "exclusive", []string{"eth0 10.244.1.1"}, []string{"", "by 192.168.5.1 is not kept"}},
		{"it asked for", "pods4", `[{"name":"exclusive","default-route":[]}]`, []string{"net1 192.168.5.1"}, nil},
		{"it twice", "pods4", `exclusive@a,lan,plain`, []string{"eth0 10.244.1.1", "net2 fd00:7::1"}, nil},
		{"asked for, of one with a table of its own", "pods", `[{"name":"by-source","default-route":["192.168.7.1","fd00:7::1"]}]`, []string{"net1 192.168.7.1", "net1 fd00:7::1"}, nil},
		{"covers", "pods4", `wide`, []string{"eth0 10.244.1.1"}, []string{"", "10.0.0.0/8 covers 10.244.1.0/24 of eth0: packets to the rest of it leave by net1"}},
		{"two of its own", "no-default", `two-hops`, []string{"net1 192.168.8.1", "net1 192.168.8.2"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPod(t)
			planned, err := p.plan(c.def, c.networks)
			if err != nil {
				t.Fatal(err)
			}
			done, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, p.defaults()); diff != "" {
				t.Errorf("default routes (-want +kernel):\n%s", diff)
			}
			results, statuses := told(done)
			for name, have := range map[string][]string{"results": results, "status": statuses} {
				if diff := cmp.Diff(c.want, have); diff != "" {
					t.Errorf("default routes (-want +%s):\n%s", name, diff)
				}
			}
			for i, words := range c.notes {
				if notes := strings.Join(done[i].Notes, "; "); !strings.Contains(notes, words) || words == "" && notes != "" {
					t.Errorf("notes of %s: %q, which lacks %q", done[i].IfName, notes, words)
				}
			}
			if err := p.Check(t.Context(), "c", "eth0", Reach{NS: p.ns}); err != nil {
				t.Error(err)
			}
			again, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
			if err != nil {
				t.Fatal(err)
			}
			if stored, _ := told(again); !slices.Equal(stored, c.want) {
				t.Errorf("stored results have %v", stored)
			}
			if _, err := p.Del(t.Context(), "c", "eth0", Reach{NS: p.ns}); err != nil {
				t.Error(err)
			}
			if left := p.defaults(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestOtherRoutesKeepTheirInterface(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods", `[{"name":"lan","default-route":[]}]`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns}); err != nil {
		t.Fatal(err)
	}
	inside, err := rtnl.Observe(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.244.0.0/16 via 10.244.1.1 dev eth0", "192.168.0.0/16 via 192.168.7.1 dev net1"} {
		if !strings.Contains(inside, want) {
			t.Errorf("no %q in\n%s", want, inside)
		}
	}
}

// With sbr behind it, a network's default route is in a table of the interface:
// replies leave by it, and the pod's default route is that of eth0 all the same.
func TestSourceBasedRoutesAreNotThePodsDefaultRoute(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods", "by-source")
	if err != nil {
		t.Fatal(err)
	}
	done, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
	if err != nil {
		t.Fatal(err)
	}
	if len(done[1].Notes) > 0 {
		t.Errorf("notes %v", done[1].Notes)
	}
	inside := p.observe()
	for _, want := range []string{
		"0.0.0.0/0 via 10.244.1.1 dev eth0\n", "::/0 via fd00:244::1 dev eth0",
		"0.0.0.0/0 via 192.168.7.1 dev net1 table 100", "::/0 via fd00:7::1 dev net1 table 10",
	} {
		if !strings.Contains(inside, want) {
			t.Errorf("no %q in\n%s", want, inside)
		}
	}
	if err := p.Check(t.Context(), "c", "eth0", Reach{NS: p.ns}); err != nil {
		t.Error(err)
	}
	if _, err := p.Del(t.Context(), "c", "eth0", Reach{NS: p.ns}); err != nil {
		t.Error(err)
	}
}

func TestGatewayThatIsNotOnTheLinkIsRefusedAndNothingIsLeft(t *testing.T) {
	p := newPod(t)
	for networks, words := range map[string]string{
		`[{"name":"lan","default-route":["192.168.99.1"]}]`: "gateway 192.168.99.1 is in no subnet of net1 (192.168.7.5/24, fd00:7::5/64)",
		`[{"name":"lan6","default-route":["10.9.9.1"]}]`:    "gateway 10.9.9.1 is in no subnet of net1",
		`[{"name":"plain","default-route":[]}]`:             "brings no gateway",
	} {
		planned, err := p.plan("pods", networks)
		if err == nil {
			before := p.observe()
			if _, err = p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns}); err != nil {
				if after := p.observe(); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			}
		}
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, which lacks %q", networks, err, words)
		}
		all, err := p.store.All()
		if err != nil || len(all) > 0 {
			t.Errorf("records %+v, %v", all, err)
		}
	}
}

func (p *pod) observe() string {
	p.t.Helper()
	text, err := rtnl.Observe(p.ns)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// A repeated ADD after a crash must not answer with results of before the
// routes were settled.
func TestCrashBeforeTheResultsAreStoredBeginsAnew(t *testing.T) {
	p := newPod(t)
	planned, err := p.plan("pods4", "lan,exclusive")
	if err != nil {
		t.Fatal(err)
	}
	// The power goes: there is no rollback either.
	pr := progress{records: intents(p.sandbox(), planned)}
	crashing := *p.Attacher
	crashing.Store = forgetful{p.store}
	pod, err := openPod(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if err := crashing.attachAll(t.Context(), &pr, Reach{NS: p.ns}, pod); !errors.Is(err, errFull) {
		t.Fatalf("attachAll = %v, want a crash", err)
	}
	done, err := p.Add(t.Context(), p.sandbox(), planned, Reach{NS: p.ns})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"eth0 10.244.1.1", "net1 fd00:7::1"}
	if results, _ := told(done); !slices.Equal(results, want) || !slices.Equal(p.defaults(), want) {
		t.Errorf("results %v, kernel %v", results, p.defaults())
	}
}

// FuzzSettle decides on results that no sane plugin returns.
func FuzzSettle(f *testing.F) {
	for _, result := range []string{
		`{}`, `{"ips":[null],"routes":[null]}`,
		`{"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"},{"address":"fd00::5/64"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"fd00::1","table":7},{"dst":"10.0.0.0/8"}]}`,
		`{"ips":[{"address":"::ffff:10.0.0.5/120","gateway":"::"}]}`,
	} {
		f.Add([]byte(result), []byte(result), "10.0.0.1", true)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, gateway string, claimed bool) {
		var done []Attached
		var brought [][]rtnl.Route
		for i, text := range [][]byte{first, second} {
			r := &current.Result{}
			if json.Unmarshal(text, r) != nil {
				return
			}
			d := Attached{Attachment: plan.Attachment{IfName: fmt.Sprint("net", i)}, Result: r}
			gw, err := netip.ParseAddr(gateway)
			if i == 1 && claimed {
				d.Claim = &plan.RouteClaim{}
				if err == nil {
					d.Claim.Gateways = []netip.Addr{gw}
				}
			}
			done = append(done, d)
			var routes []rtnl.Route
			for _, dst := range []string{"0.0.0.0/0", "::/0"} {
				routes = append(routes, rtnl.Route{Dst: netip.MustParsePrefix(dst), Link: i + 1})
			}
			brought = append(brought, routes)
		}
		s, err := settle(done, brought)
		if err != nil {
			return
		}
		families := map[bool]int{}
		for _, r := range s.routes {
			families[r.Dst.Addr().Is6()]++
		}
		if families[false] != 1 || families[true] != 1 {
			t.Fatalf("default routes %+v", s.routes)
		}
	})
}
