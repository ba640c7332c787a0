package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/topology"
)

// vlanPod is a pod of examples/vlan and what it was promised.
type vlanPod struct {
	name, address string
	vlan          int
	gateway       string // the external host in the pod's VLAN
	stranger      string // the external host in the other VLAN
}

var vlanPods = []vlanPod{
	{"pod1a", "10.20.1.11", 2001, "10.20.1.1", "10.20.2.1"},
	{"pod1b", "10.20.1.12", 2001, "10.20.1.1", "10.20.2.1"},
	{"pod1c", "10.20.1.13", 2001, "10.20.1.1", "10.20.2.1"},
	{"pod2", "10.20.2.11", 2002, "10.20.2.1", "10.20.1.1"},
}

// VLAN runs the VLAN scenario: Braid is installed from deploy/, the nodes get
// their bridge, and the pods of examples/vlan reach their VLAN and no other.
// It leaves everything in place for the user to look at.
func (d *Demo) VLAN(ctx context.Context, image string) error {
	for _, part := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"Install Braid from deploy/", func(ctx context.Context) error { return d.Install(ctx, image) }},
		{"Prepare the nodes: a VLAN-filtering bridge with the trunk link as its port", d.PrepareNodes},
		{"Two networks and four pods, as people write them for Multus", d.applyVLAN},
		{"Every pod has net1 with the address it asked for", d.checkInterfaces},
		{"Pods reach the external host in their own VLAN, and not in the other", d.checkExternal},
		{"Pods of one VLAN reach each other, across nodes and within one", d.checkBetweenPods},
		{"On the nodes: one access port per pod", d.checkAccessPorts},
		{"eth0 still works everywhere", d.checkDefaultNetwork},
		{"The picture", d.drawTopology},
	} {
		d.step("%s", part.title)
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(part.title[:1])+part.title[1:], err)
		}
	}
	return nil
}

// Install loads image, the archive of Braid's image, onto every node and
// applies deploy/ as a user would.
func (d *Demo) Install(ctx context.Context, image string) error {
	if err := d.Cluster.LoadImage(ctx, image); err != nil {
		return err
	}
	if _, err := d.kubectl(ctx, "apply", "-k", filepath.Join(d.Root, "deploy")); err != nil {
		return err
	}
	_, err := d.kubectl(ctx, "-n", "braid-system", "rollout", "status", "daemonset/braidd", "--timeout=120s")
	return err
}

// PrepareNodes runs the preparation script of the example on every node.
func (d *Demo) PrepareNodes(ctx context.Context) error {
	script := filepath.Join(d.Root, "examples/vlan/prepare-node.sh")
	var nodes errgroup.Group
	for _, node := range d.Cluster.Nodes() {
		fmt.Fprintf(d.Out, "%s# sh %s\n", node, script)
		nodes.Go(func() error {
			_, err := d.Cluster.NodeRun(ctx, node, "sh", script)
			return err
		})
	}
	return nodes.Wait()
}

func (d *Demo) applyVLAN(ctx context.Context) error {
	if _, err := d.kubectl(ctx, "apply", "-k", filepath.Join(d.Root, "examples/vlan-two-nodes")); err != nil {
		return err
	}
	names := []string{}
	for _, p := range vlanPods {
		names = append(names, "pod/"+p.name)
	}
	if _, err := d.kubectl(ctx, append([]string{"wait", "--for=condition=Ready", "--timeout=240s"}, names...)...); err != nil {
		events, _ := d.Cluster.Kubectl(ctx, "get", "events", "--sort-by=.lastTimestamp")
		d.show(events)
		return err
	}
	_, err := d.kubectl(ctx, "get", "pods", "-o", "wide")
	return err
}

// eachPod runs one check for every pod, all at the same time.
func (d *Demo) eachPod(check func(*Demo, vlanPod) error) error {
	checks := make([]func(*Demo) error, len(vlanPods))
	for i, p := range vlanPods {
		checks[i] = func(d *Demo) error { return check(d, p) }
	}
	return d.together(checks...)
}

func (d *Demo) checkInterfaces(ctx context.Context) error {
	return d.eachPod(func(d *Demo, p vlanPod) error {
		out, err := d.kubectl(ctx, "exec", p.name, "--", "ip", "address", "show", "dev", "net1")
		if err != nil {
			return err
		}
		if want := "inet " + p.address + "/24 "; !strings.Contains(out, want) {
			return fmt.Errorf("%s: net1 lacks %q", p.name, want)
		}
		d.holds("%s has %s on net1", p.name, p.address)
		return nil
	})
}

func (d *Demo) checkExternal(ctx context.Context) error {
	macs, err := d.externalMACs(ctx)
	if err != nil {
		return err
	}
	return d.eachPod(func(d *Demo, p vlanPod) error {
		if err := d.arpAnswered(ctx, p.name, p.gateway, macs[p.gateway]); err != nil {
			return err
		}
		return d.arpUnanswered(ctx, p.name, p.stranger)
	})
}

func (d *Demo) checkBetweenPods(ctx context.Context) error {
	macs, err := d.net1MACs(ctx)
	if err != nil {
		return err
	}
	pod1a, pod1b, pod1c, pod2 := vlanPods[0], vlanPods[1], vlanPods[2], vlanPods[3]
	reaches := func(from, to vlanPod) func(*Demo) error {
		return func(d *Demo) error { return d.arpAnswered(ctx, from.name, to.address, macs[to.name]) }
	}
	misses := func(from, to vlanPod) func(*Demo) error {
		return func(d *Demo) error { return d.arpUnanswered(ctx, from.name, to.address) }
	}
	return d.together(
		reaches(pod1a, pod1b), reaches(pod1b, pod1a), // across nodes
		reaches(pod1b, pod1c), reaches(pod1c, pod1b), // within one
		misses(pod1a, pod2), misses(pod2, pod1a),
	)
}

// arpAnswered proves reachability on layer 2: the answer must come from the
// owner of the address, so that a proxy in between would be noticed.
func (d *Demo) arpAnswered(ctx context.Context, pod, address, mac string) error {
	out, err := d.kubectl(ctx, "exec", pod, "--", "arping", "-f", "-w", "20", "-I", "net1", address)
	if err != nil {
		return fmt.Errorf("%s gets no ARP reply from %s: %w", pod, address, err)
	}
	if !strings.Contains(strings.ToLower(out), strings.ToLower("["+mac+"]")) {
		return fmt.Errorf("%s: %s is answered by somebody else than its owner %s", pod, address, mac)
	}
	d.holds("%s reaches %s (%s)", pod, address, mac)
	return nil
}

var received = regexp.MustCompile(`Received (\d+) response`)

// arpUnanswered proves isolation. That arping ran and sent is read from its
// own count, so that a command that could not run proves nothing.
func (d *Demo) arpUnanswered(ctx context.Context, pod, address string) error {
	out, _ := d.kubectl(ctx, "exec", pod, "--", "sh", "-c",
		"arping -c 2 -w 2 -I net1 "+address+" || true")
	count := received.FindStringSubmatch(out)
	switch {
	case count == nil:
		return fmt.Errorf("%s: arping %s did not run to its end", pod, address)
	case count[1] != "0":
		return fmt.Errorf("%s got an ARP reply from %s, which is in another VLAN", pod, address)
	}
	d.holds("%s does not reach %s", pod, address)
	return nil
}

// externalMACs maps each address of the external host to its link's MAC.
func (d *Demo) externalMACs(ctx context.Context) (map[string]string, error) {
	out, err := d.Cluster.NodeRun(ctx, "ext", "ip", "-json", "address")
	if err != nil {
		return nil, err
	}
	var links []struct {
		Address  string
		AddrInfo []struct{ Local string } `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return nil, fmt.Errorf("links of the external host: %w", err)
	}
	macs := map[string]string{}
	for _, link := range links {
		for _, a := range link.AddrInfo {
			macs[a.Local] = link.Address
		}
	}
	for _, p := range vlanPods {
		if macs[p.gateway] == "" {
			return nil, fmt.Errorf("the external host has no address %s", p.gateway)
		}
	}
	return macs, nil
}

// net1MACs reads each pod's net1 MAC from its network-status annotation, which
// makes the scenario fail when that does not come or is wrong.
func (d *Demo) net1MACs(ctx context.Context) (macs map[string]string, err error) {
	err = d.Eventually(ctx, time.Minute, "the network status of every pod", func(ctx context.Context) error {
		macs, err = d.net1MACsNow(ctx)
		return err
	})
	return macs, err
}

func (d *Demo) net1MACsNow(ctx context.Context) (map[string]string, error) {
	view, err := d.view(ctx)
	if err != nil {
		return nil, err
	}
	macs := map[string]string{}
	for _, node := range view.Nodes {
		for _, pod := range node.Pods {
			for _, i := range pod.Interfaces {
				if i.Name == "net1" {
					macs[pod.Name] = i.MAC
				}
			}
		}
	}
	for _, p := range vlanPods {
		if macs[p.name] == "" {
			return nil, fmt.Errorf("the network-status of %s has no MAC for net1", p.name)
		}
	}
	return macs, nil
}

var accessPort = regexp.MustCompile(`\b(200[12]) PVID Egress Untagged`)

func (d *Demo) checkAccessPorts(ctx context.Context) error {
	got := map[string]int{}
	for _, node := range d.Cluster.Nodes() {
		out, err := d.onNode(ctx, node, "bridge", "-compressvlans", "vlan", "show")
		if err != nil {
			return err
		}
		for _, m := range accessPort.FindAllStringSubmatch(out, -1) {
			got[m[1]]++
		}
	}
	if got["2001"] != 3 || got["2002"] != 1 {
		return fmt.Errorf("access ports: %d in VLAN 2001 and %d in VLAN 2002, want 3 and 1", got["2001"], got["2002"])
	}
	d.holds("three access ports in VLAN 2001, one in VLAN 2002")
	return nil
}

// checkDefaultNetwork pings every pod from every other over the default
// network, which crosses nodes.
func (d *Demo) checkDefaultNetwork(ctx context.Context) error {
	out, err := d.Cluster.Kubectl(ctx, "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.podIP}{"\n"}{end}`)
	if err != nil {
		return err
	}
	ips := map[string]string{}
	for line := range strings.Lines(out) {
		name, ip, _ := strings.Cut(strings.TrimSpace(line), "=")
		ips[name] = ip
	}
	return d.eachPod(func(d *Demo, from vlanPod) error {
		var targets []string
		for _, to := range vlanPods {
			if ips[to.name] == "" {
				return fmt.Errorf("%s has no pod IP", to.name)
			}
			if to != from {
				targets = append(targets, ips[to.name])
			}
		}
		script := fmt.Sprintf("for ip in %s; do ping -q -c 1 -w 10 $ip || exit 1; done", strings.Join(targets, " "))
		if _, err := d.kubectl(ctx, "exec", from.name, "--", "sh", "-c", script); err != nil {
			return fmt.Errorf("%s does not reach the other pods over eth0: %w", from.name, err)
		}
		d.holds("%s reaches %s over eth0", from.name, strings.Join(targets, ", "))
		return nil
	})
}

func (d *Demo) drawTopology(ctx context.Context) error {
	view, err := d.view(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(d.Root, "out", "topology.svg")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(view.SVG()), 0o644); err != nil {
		return err
	}
	d.show(view.Text())
	fmt.Fprintf(d.Out, "  drawn in %s\n", path)
	return nil
}

func (d *Demo) view(ctx context.Context) (topology.View, error) {
	out, err := d.Cluster.Kubectl(ctx, "get", "pods", "-o", "json")
	if err != nil {
		return topology.View{}, err
	}
	view, err := topology.Parse([]byte(out))
	if err == nil && len(view.Nodes) == 0 {
		err = errors.New("no pod has a network-status annotation")
	}
	return view, err
}

// RemoveVLAN deletes the pods and networks of the scenario and proves that
// nothing of them is left on the nodes.
func (d *Demo) RemoveVLAN(ctx context.Context) error {
	d.step("Delete the pods: nothing of them stays on the nodes")
	if _, err := d.kubectl(ctx, "delete", "-k", filepath.Join(d.Root, "examples/vlan-two-nodes"), "--wait=true", "--grace-period=1"); err != nil {
		return err
	}
	return d.Eventually(ctx, time.Minute, "access ports of deleted pods are gone", func(ctx context.Context) error {
		for _, node := range d.Cluster.Nodes() {
			out, err := d.Cluster.NodeRun(ctx, node, "bridge", "vlan", "show")
			if err != nil {
				return err
			}
			if left := accessPort.FindString(out); left != "" {
				return fmt.Errorf("%s still has a port with VLAN %s", node, strings.TrimSpace(left))
			}
		}
		return nil
	})
}
