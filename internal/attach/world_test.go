package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// world is a kernel and a disk that only remembers what was made in it, and
// whose power can be cut before or after any change.
type world struct {
	mu   sync.Mutex
	made map[string]bool
	log  []string
	// left is how many steps may be taken until the power goes; negative: all.
	left int
	// steps counts them.
	steps int
	// broken makes an operation such as "attach net1/fails" fail.
	broken map[string]error
	specs  []driver.Spec
}

func newWorld() *world { return &world{made: map[string]bool{}, broken: map[string]error{}, left: -1} }

var errPower = errors.New("power is off")

// step is a moment at which the power may go.
func (w *world) step() error {
	w.steps++
	if w.left == 0 {
		return errPower
	}
	if w.left > 0 {
		w.left--
	}
	return nil
}

func (w *world) powerCutAfter(steps int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left, w.steps = steps, 0
}

// do takes one change, between two moments at which the power may go.
func (w *world) do(op, thing string, change func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.step(); err != nil {
		return err
	}
	w.log = append(w.log, op+" "+thing)
	if err := w.broken[op+" "+thing]; err != nil {
		return err
	}
	change()
	return w.step()
}

func (w *world) make(thing string) error {
	return w.do("attach", thing, func() { w.made[thing] = true })
}

func (w *world) remove(thing string) error {
	return w.do("detach", thing, func() { delete(w.made, thing) })
}

func (w *world) things() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var things []string
	for thing := range w.made {
		things = append(things, thing)
	}
	slices.Sort(things)
	return things
}

func (w *world) takeLog() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	log := w.log
	w.log = nil
	return log
}

func pluginType(conf []byte) string {
	var c struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(conf, &c); err != nil {
		panic(err)
	}
	return c.Type
}

// native is a driver that keeps the contract of package driver.
type native struct{ *world }

func (n native) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	n.mu.Lock()
	n.specs = append(n.specs, s)
	n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	thing := s.ContainerID + "/" + s.IfName + "/" + pluginType(s.Conf)
	result := &current.Result{CNIVersion: "1.1.0"}
	if s.Prev != nil {
		result = s.Prev
	}
	if s.IPAM != nil {
		addresses, err := s.IPAM.Add(ctx)
		if err != nil {
			return nil, err
		}
		result.IPs = append(result.IPs, addresses.IPs...)
	}
	result.Interfaces = append(result.Interfaces, &current.Interface{Name: s.IfName, Sandbox: s.NetNSPath})
	if err := n.make(thing); err != nil {
		if errors.Is(err, errPower) {
			return nil, err
		}
		if s.IPAM != nil {
			err = errors.Join(err, s.IPAM.Del(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return result, nil
}

func (n native) Detach(ctx context.Context, s driver.Spec) error {
	err := n.remove(s.ContainerID + "/" + s.IfName + "/" + pluginType(s.Conf))
	if s.IPAM != nil {
		err = errors.Join(err, s.IPAM.Del(ctx))
	}
	return err
}

func (n native) Check(_ context.Context, s driver.Spec) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.specs = append(n.specs, s)
	if !n.made[s.ContainerID+"/"+s.IfName+"/"+pluginType(s.Conf)] {
		return errors.New("it is gone")
	}
	return nil
}

// foresees is a driver that knows what it will come to.
type foresees struct{ native }

func (f foresees) Foretell(ctx context.Context, s driver.Spec) (*current.Result, error) {
	result := &current.Result{CNIVersion: "1.1.0"}
	if s.IPAM != nil {
		addresses, err := s.IPAM.Add(ctx)
		if err != nil {
			return nil, err
		}
		result.IPs = addresses.IPs
	}
	result.Interfaces = []*current.Interface{{Name: s.IfName, Sandbox: s.NetNSPath}}
	return result, nil
}

// panics panics in the middle of its work.
type panics struct{ native }

func (p panics) Attach(context.Context, driver.Spec) (*current.Result, error) { panic("not today") }

// addresses is an address dialect.
type addresses struct{ *world }

func (a addresses) Add(_ context.Context, r ipam.Request) (*current.Result, error) {
	if err := a.make(r.ContainerID + "/" + r.IfName + "/address"); err != nil {
		return nil, err
	}
	_, prefix, _ := net.ParseCIDR("10.0.0.0/24")
	prefix.IP = net.IPv4(10, 0, 0, 2)
	return &current.Result{CNIVersion: "1.1.0", IPs: []*current.IPConfig{{Address: *prefix}}}, nil
}

func (a addresses) Del(_ context.Context, r ipam.Request) error {
	return a.remove(r.ContainerID + "/" + r.IfName + "/address")
}

func (a addresses) Check(context.Context, ipam.Request) error { return nil }

// host runs programs that make things in the world, as foreign plugins do.
type host struct{ *world }

func (h host) Exec(_ context.Context, p driver.Program) ([]byte, error) {
	env := map[string]string{}
	for _, pair := range p.Env {
		k, v, _ := strings.Cut(pair, "=")
		env[k] = v
	}
	thing := env["CNI_CONTAINERID"] + "/" + env["CNI_IFNAME"] + "/" + p.Name
	h.mu.Lock()
	missing := h.broken["run "+p.Name]
	h.mu.Unlock()
	var asItIs *exec.NotRunError
	switch {
	case errors.As(missing, &asItIs):
		return nil, missing
	case missing != nil:
		return nil, &exec.NotRunError{Err: missing}
	}
	switch env["CNI_COMMAND"] {
	case "ADD":
		if err := h.make(thing); err != nil {
			return nil, err
		}
		var c struct {
			CNIVersion string          `json:"cniVersion"`
			PrevResult json.RawMessage `json:"prevResult"`
		}
		if err := json.Unmarshal(p.Stdin, &c); err != nil {
			return nil, err
		}
		if c.PrevResult != nil {
			return c.PrevResult, nil
		}
		return []byte(`{"cniVersion":"` + c.CNIVersion + `"}`), nil
	case "DEL":
		return nil, h.remove(thing)
	case "CHECK":
		if !slices.Contains(h.things(), thing) {
			return nil, &driver.ExitError{Program: p.Name, Code: 1, Stdout: []byte(`{"code":100,"msg":"its rule is gone"}`)}
		}
	}
	return nil, nil
}

// papers are the device information files of the world.
type papers struct{ *world }

func (p papers) Prepare(a plan.Attachment) error {
	return p.do("prepare", a.DeviceInfoFile, func() { p.made[a.DeviceInfoFile] = true })
}

func (p papers) Read(a plan.Attachment) (json.RawMessage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.broken["read "+a.DeviceInfoFile]; err != nil {
		return nil, err
	}
	return json.RawMessage(fmt.Sprintf(`{"type":"pci","of":%q}`, a.DeviceInfoFile)), nil
}

func (p papers) Remove(a plan.Attachment) error {
	return p.do("discard", a.DeviceInfoFile, func() { delete(p.made, a.DeviceInfoFile) })
}

// of gives an attachment of a container a device information file.
func (p papers) of(id string, a plan.Attachment) plan.Attachment {
	a.DeviceInfoFile = id + "/" + a.IfName + "/info"
	return a
}

// disk is the store on a machine whose power can go.
type disk struct {
	*store.Store
	world *world
}

func (d disk) Begin(ctx context.Context, rs []store.Record) (err error) {
	return errors.Join(d.world.do("store", "begin", func() { err = d.Store.Begin(ctx, rs) }), err)
}

func (d disk) Attached(ctx context.Context, records ...store.Record) (err error) {
	return errors.Join(d.world.do("store", "attached", func() { err = d.Store.Attached(ctx, records...) }), err)
}

func (d disk) Remove(ctx context.Context, keys ...store.Key) (err error) {
	return errors.Join(d.world.do("store", "remove", func() { err = d.Store.Remove(ctx, keys...) }), err)
}

// machine is a world with a store and an Attacher.
type machine struct {
	*world
	*Attacher
	path  string
	store *store.Store
}

func newMachine(t testing.TB, dir string) *machine {
	t.Helper()
	m := &machine{world: newWorld(), path: filepath.Join(dir, store.FileName)}
	m.boot(t)
	t.Cleanup(func() { m.store.Close() })
	return m
}

// boot starts the daemon again after the power was cut, or for the first time.
func (m *machine) boot(t testing.TB) {
	t.Helper()
	m.powerCutAfter(-1)
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.store, err = store.Open(context.Background(), m.path); err != nil {
		t.Fatal(err)
	}
	n := native{m.world}
	m.Attacher = &Attacher{
		Drivers: map[string]driver.Driver{"one": n, "two": n, "fails": n, "panics": panics{n}, "sees": foresees{n}},
		IPAM:    map[string]ipam.Plugin{"addresses": addresses{m.world}},
		Store:   disk{m.store, m.world},
		BinDirs: []string{"/opt/cni/bin"},

		DeviceInfo: papers{m.world},
	}
}

func (m *machine) reach() Reach { return Reach{Host: host{m.world}} }

func (m *machine) records(t testing.TB) []store.Record {
	t.Helper()
	all, err := m.store.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// nothingLeft fails the test when the world or the store is not empty.
func (m *machine) nothingLeft(t testing.TB) {
	t.Helper()
	if left := m.things(); len(left) > 0 {
		t.Errorf("left in the world: %v", left)
	}
	if left := m.records(t); len(left) > 0 {
		t.Errorf("left in the store: %+v", left)
	}
}

func sandbox(id string) store.Sandbox {
	return store.Sandbox{ContainerID: id, IfName: "eth0", NetNS: "/run/netns/" + id, NSID: netns.ID{Dev: 1, Ino: 2}, Args: "K8S_POD_NAME=p", Path: "/usr/lib/cni"}
}

// network makes an attachment; a type with a + has addresses.
func network(ifName string, types ...string) plan.Attachment {
	n := plan.Network{CNIVersion: "1.0.0", Name: "net-" + ifName}
	for _, t := range types {
		name, withAddresses := strings.CutSuffix(t, "+")
		p := plan.Plugin{Type: name, Conf: json.RawMessage(fmt.Sprintf(`{"type":%q}`, name))}
		if withAddresses {
			p.IPAM = "addresses"
		}
		n.Plugins = append(n.Plugins, p)
	}
	return plan.Attachment{Network: "default/" + n.Name, IfName: ifName, Default: ifName == "eth0", Config: n}
}

func planOf(attachments ...plan.Attachment) plan.Plan { return plan.Plan{Attachments: attachments} }
