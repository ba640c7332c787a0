package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// World is a node, a namespace of its own, with the driver that serves it.
type World struct {
	Node     *netns.NS
	NodePath string
	Driver   driver.Driver

	subject Subject
	pods    int
}

// Pod is a container of a World.
type Pod struct {
	// N counts the containers of a world from 0.
	N    int
	ID   string
	NS   *netns.NS
	Path string
	// Prev is what Subject.Prev returned for it.
	Prev *current.Result
}

// NewWorld makes a node. It skips the test where the kernel lacks something.
func NewWorld(t testing.TB, s Subject) *World {
	t.Helper()
	kerneltest.Need(t, kerneltest.NetNS)
	kerneltest.Need(t, s.Needs...)
	w := &World{subject: s}
	w.Node, w.NodePath = kerneltest.NewNamedNS(t)
	if s.Node != nil {
		s.Node(t, w.Node)
	}
	w.Driver = Finishing(s.New(w.Node))
	return w
}

// Pod makes one more container. New links in it do not look for duplicates of
// their IPv6 addresses unless a driver says so: that would take a second each.
func (w *World) Pod(t testing.TB) Pod {
	t.Helper()
	p := Pod{N: w.pods, ID: fmt.Sprintf("container-%d", w.pods)}
	w.pods++
	p.NS, p.Path = kerneltest.NewNamedNS(t)
	withoutDAD(t, p.NS)
	if w.subject.Prev != nil {
		p.Prev = w.subject.Prev(t, w, p)
	}
	return p
}

func withoutDAD(t testing.TB, ns *netns.NS) {
	t.Helper()
	try(t, rtnl.Sysctl{}.Set(ns, rtnl.Setting{Path: "ipv6/conf/default/accept_dad", Value: "0"}))
}

// Spec is the attachment of p by conf, a complete configuration.
func (w *World) Spec(p Pod, conf string) driver.Spec {
	s := driver.Spec{
		ContainerID: p.ID, IfName: w.subject.ifName(), NetNS: p.NS, NetNSPath: p.Path,
		Conf: []byte(conf), Prev: clone(p.Prev),
	}
	if strings.Contains(conf, `"ipam"`) {
		s.IPAM = &Static{Conf: s.Conf}
	}
	return s
}

// Attached attaches p by conf and returns the Spec that Check and Detach get.
func (w *World) Attached(t testing.TB, s driver.Spec) driver.Spec {
	t.Helper()
	res, err := w.Driver.Attach(t.Context(), s)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	s.Prev = res
	return s
}

// clone protects what a test compares with later.
func clone(r *current.Result) *current.Result {
	if r == nil {
		return nil
	}
	data, err := json.Marshal(r)
	out := &current.Result{}
	if err == nil {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		panic(err) // a result is its own JSON
	}
	return out
}

// Text describes the node and the containers, as golden files have it.
func (w *World) Text(t testing.TB, pods ...Pod) string {
	t.Helper()
	var b strings.Builder
	part := func(name string, ns *netns.NS) {
		world, err := rtnl.Observe(ns)
		try(t, err)
		fmt.Fprintf(&b, "-- %s\n%s", name, world)
	}
	part("node", w.Node)
	for _, p := range pods {
		name := "container"
		if p.N > 0 {
			name += fmt.Sprintf(" %d", p.N)
		}
		part(name, p.NS)
		if w.subject.Observe != nil {
			b.WriteString(w.subject.Observe(t, w, p))
		}
	}
	return b.String()
}

// Static is an address delegate that gives what ipam type static would.
type Static struct {
	Conf []byte
	// Fail makes Add fail.
	Fail error
	// Block makes Add wait until its context ends.
	Block bool

	mu         sync.Mutex
	adds, dels int
}

// Add implements driver.IPAM.
func (s *Static) Add(ctx context.Context) (*current.Result, error) {
	s.mu.Lock()
	s.adds++
	s.mu.Unlock()
	if s.Block {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.Fail != nil {
		return nil, s.Fail
	}
	var c struct {
		IPAM struct {
			Addresses []struct {
				Address types.IPNet `json:"address"`
				Gateway net.IP      `json:"gateway"`
			} `json:"addresses"`
			Routes []*types.Route `json:"routes"`
			DNS    types.DNS      `json:"dns"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return nil, err
	}
	res := &current.Result{Routes: c.IPAM.Routes, DNS: c.IPAM.DNS}
	for _, a := range c.IPAM.Addresses {
		res.IPs = append(res.IPs, &current.IPConfig{Address: net.IPNet(a.Address), Gateway: a.Gateway})
	}
	return res, nil
}

// Del implements driver.IPAM.
func (s *Static) Del(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dels++
	return nil
}

// Check implements driver.IPAM.
func (s *Static) Check(context.Context) error { return nil }

// Released says whether Del was called since the last Add.
func (s *Static) Released() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adds == 0 || s.dels > 0
}

// family is what a configuration asks of ipam.
type family struct {
	name     string
	v4, v6   bool
	optional bool // needs a driver that works without ipam
}

var families = []family{
	{name: "no address", optional: true},
	{name: "IPv4", v4: true},
	{name: "IPv6", v6: true},
	{name: "dual stack", v4: true, v6: true},
}

func (s Subject) families() []family {
	switch s.Addresses {
	case Never:
		return families[:1]
	case Required:
		return families[1:]
	}
	return families
}

// some is the family of tests that need no more than one: one with addresses,
// where the driver has any.
func (s Subject) some() family {
	if s.Addresses == Never {
		return families[0]
	}
	return families[3]
}

// conf is the configuration of container n.
func (s Subject) conf(keys string, f family, n int) string {
	parts := []string{`"cniVersion":"1.1.0"`, `"name":"testnet"`, fmt.Sprintf(`"type":%q`, s.Type)}
	if keys != "" {
		parts = append(parts, keys)
	}
	var addrs, routes []string
	if f.v4 {
		addrs = append(addrs, fmt.Sprintf(`{"address":"10.1.0.%d/24","gateway":"10.1.0.1"}`, n+10))
		routes = append(routes, `{"dst":"10.99.0.0/16"}`)
	}
	if f.v6 {
		addrs = append(addrs, fmt.Sprintf(`{"address":"fd00:1::%x/64","gateway":"fd00:1::1"}`, n+0x10))
		routes = append(routes, `{"dst":"fd00:99::/32"}`)
	}
	if addrs != nil {
		parts = append(parts, fmt.Sprintf(`"ipam":{"type":"static","addresses":[%s],"routes":[%s]}`, strings.Join(addrs, ","), strings.Join(routes, ",")))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

var (
	randomVeth = regexp.MustCompile(`"veth[0-9a-f]{8}"`)
	anyMAC     = regexp.MustCompile(`"([0-9a-f]{2}:){5}[0-9a-f]{2}"`)
	anyNS      = regexp.MustCompile(`"/run/netns/[^"]*"`)
)

// Plain is a result as JSON without what differs in every run.
func Plain(t testing.TB, res *current.Result) string {
	t.Helper()
	data, err := json.MarshalIndent(res, "", "  ")
	try(t, err)
	out := randomVeth.ReplaceAllString(string(data), `"veth#"`)
	out = anyNS.ReplaceAllString(out, `"NETNS"`)
	return anyMAC.ReplaceAllString(out, `"MAC"`) + "\n"
}

// WantError fails the test unless err is a CNI error of that code that says
// text.
func WantError(t testing.TB, err error, code uint, text string) {
	t.Helper()
	var cni *types.Error
	switch {
	case !errors.As(err, &cni):
		t.Errorf("error %v, want a CNI error of code %d", err, code)
	case cni.Code != code || !strings.Contains(err.Error(), text):
		t.Errorf("error %v (code %d), want code %d and %q", err, cni.Code, code, text)
	}
}
