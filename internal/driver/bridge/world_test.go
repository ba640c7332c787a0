package bridge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// world is a node and a container, each a namespace of its own.
type world struct {
	host, pod *netns.NS
	podPath   string
	d         driver.Driver
}

func newWorld(t testing.TB) *world {
	t.Helper()
	kerneltest.Need(t, kerneltest.Veth, kerneltest.Bridge)
	w := &world{host: kerneltest.NewNS(t)}
	w.pod, w.podPath = kerneltest.NewNamedNS(t)
	w.d = drivertest.Finishing(bridge.New(bridge.Config{HostNS: w.host}))
	return w
}

// spec is an attachment of the world's container by conf.
func (w *world) spec(conf string) driver.Spec {
	s := driver.Spec{
		ContainerID: "test-container", IfName: "net1",
		NetNS: w.pod, NetNSPath: w.podPath, Conf: []byte(conf),
	}
	if strings.Contains(conf, `"ipam"`) {
		s.IPAM = &staticIPAM{conf: s.Conf}
	}
	return s
}

func (w *world) attach(t testing.TB, s driver.Spec) *current.Result {
	t.Helper()
	res, err := w.d.Attach(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// staticIPAM gives what ipam type static would.
type staticIPAM struct {
	conf       []byte
	adds, dels int
	fail       error
}

func (s *staticIPAM) Add(context.Context) (*current.Result, error) {
	s.adds++
	if s.fail != nil {
		return nil, s.fail
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
	if err := json.Unmarshal(s.conf, &c); err != nil {
		return nil, err
	}
	res := &current.Result{Routes: c.IPAM.Routes, DNS: c.IPAM.DNS}
	for _, a := range c.IPAM.Addresses {
		res.IPs = append(res.IPs, &current.IPConfig{Address: net.IPNet(a.Address), Gateway: a.Gateway})
	}
	return res, nil
}

func (s *staticIPAM) Del(context.Context) error   { s.dels++; return nil }
func (s *staticIPAM) Check(context.Context) error { return nil }

// inNode runs programs in the world's node, as the shim does on a real one.
type inNode struct{ ns *netns.NS }

func (n inNode) Exec(ctx context.Context, p driver.Program) (out []byte, err error) {
	var stderr bytes.Buffer
	name := p.Name
	if inGuest() { // whose kernel serves only the old iptables
		name = strings.Replace(name, "tables", "tables-legacy", 1)
	}
	cmd := exec.CommandContext(ctx, name, p.Args...)
	cmd.Stdin, cmd.Stderr, cmd.Env = bytes.NewReader(p.Stdin), &stderr, append(os.Environ(), p.Env...)
	err = n.ns.Do(func() error {
		out, err = cmd.Output()
		return err
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &driver.ExitError{Program: p.Name, Code: exit.ExitCode(), Stdout: out, Stderr: stderr.Bytes()}
	}
	return out, err
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

// text describes the world as golden files have it.
func (w *world) text(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, side := range []struct {
		name string
		ns   *netns.NS
	}{{"node", w.host}, {"container", w.pod}} {
		world, err := rtnl.Observe(side.ns)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "-- %s\n%s", side.name, world)
	}
	return b.String()
}

var (
	randomVeth = regexp.MustCompile(`"veth[0-9a-f]{8}"`)
	anyMAC     = regexp.MustCompile(`"([0-9a-f]{2}:){5}[0-9a-f]{2}"`)
	anyNS      = regexp.MustCompile(`"/run/netns/[^"]*"`)
)

// plain is a result as JSON without what differs in every run.
func plain(t testing.TB, res *current.Result) string {
	t.Helper()
	data, err := json.MarshalIndent(res, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	out := randomVeth.ReplaceAllString(string(data), `"veth#"`)
	out = anyNS.ReplaceAllString(out, `"NETNS"`)
	return anyMAC.ReplaceAllString(out, `"MAC"`) + "\n"
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (UPDATE_GOLDEN=1 writes it anew)\n--- got\n%s--- want\n%s", path, got, want)
	}
}

// link changes the node of the world.
func (w *world) node(t testing.TB) *rtnl.Handle { return handle(t, w.host) }

func handle(t testing.TB, ns *netns.NS) *rtnl.Handle {
	t.Helper()
	h, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}
