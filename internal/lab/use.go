package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/netns"
)

// A Lab is a lab that somebody brought up.
type Lab struct {
	// Progress receives one line per step of what changes the lab; nil discards
	// them.
	Progress *Progress

	paths
	state state
}

// ErrNoLab is returned for a lab that does not exist.
var ErrNoLab = errors.New("there is no such lab")

// Open finds the lab of that name.
func Open(name string) (*Lab, error) {
	name = cmp.Or(name, DefaultName)
	if err := checkName(name); err != nil {
		return nil, err
	}
	p := paths{name}
	s, err := readState(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s: %w: `braid lab up --name %s` makes it", name, ErrNoLab, name)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return &Lab{paths: p, state: s}, nil
}

// running reports whether the lab was brought up and its control plane lives.
func (l *Lab) running() bool {
	return l.state.Up && !slices.ContainsFunc(l.state.Processes, func(p *process) bool { return !p.Stopped && !p.running() })
}

// Name is the name of the lab.
func (l *Lab) Name() string { return l.state.Name }

// Nodes are the names of the cluster's nodes.
func (l *Lab) Nodes() []string {
	var list []string
	for _, n := range l.state.Nodes {
		list = append(list, n.Name)
	}
	return list
}

// Kubeconfig is the file with which cluster-admin reaches the API server, from
// inside NetNS.
func (l *Lab) Kubeconfig() string { return l.kubeconfig("admin") }

// NetNS is the path of the network namespace that the lab lives in.
func (l *Lab) NetNS() string { return l.netns() }

// Program is the executable of that name which the lab was built with, such as
// kubectl or cnitool; empty when there is none.
func (l *Lab) Program(name string) string { return l.state.Binaries[name] }

// Down removes the lab; see the function Down.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.Name(), nil) }

// Dial connects to an address inside the lab, such as the API server or a pod.
// The address is a literal IP address and port.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ns, err := netns.Open(l.netns())
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return dialIn(ns)(ctx, network, addr)
}

// Streams are the standard streams of a command; a nil one is empty or
// discarded.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// RunKubectl runs kubectl as cluster-admin inside the lab and returns its exit
// code.
func (l *Lab) RunKubectl(ctx context.Context, s Streams, args ...string) (int, error) {
	code, err := l.Run(ctx, s, append([]string{l.Program("kubectl")}, args...)...)
	return code, wrap("kubectl", err)
}

// Run runs a program of the machine inside the lab's network namespace, with
// KUBECONFIG set for cluster-admin, and returns its exit code.
func (l *Lab) Run(ctx context.Context, s Streams, args ...string) (int, error) {
	ns, err := netns.Open(l.netns())
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// Every lab's API server has the same address: what kubectl remembers of
	// one must not be taken for another's, nor stay behind.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(l.dir(), "kubectl"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	// When ctx ends kubectl gets the chance to end what it runs in a pod.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := ns.Do(cmd.Start); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Kubectl runs kubectl as cluster-admin and returns what it printed. The error
// for an exit code other than zero says what was run and what was complained
// about.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return l.KubectlInput(ctx, nil, args...)
}

// KubectlInput is Kubectl with an input, as for `apply -f -`.
func (l *Lab) KubectlInput(ctx context.Context, in io.Reader, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	code, err := l.RunKubectl(ctx, Streams{In: in, Out: &out, Err: &complaint}, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("kubectl %s: exit status %d: %s", strings.Join(args, " "), code, tail(complaint.Bytes(), 10))
	}
	return out.String(), err
}

// Node returns the guest of a node or of the external host.
func (l *Lab) Node(name string) (*guest.Guest, error) {
	if !slices.ContainsFunc(l.state.Guests, func(n node) bool { return n.Name == name }) {
		var there []string
		for _, n := range l.state.Guests {
			there = append(there, n.Name)
		}
		return nil, fmt.Errorf("lab %s has no node %q; there are: %s", l.Name(), name, strings.Join(there, ", "))
	}
	g, err := guest.Open(l.guest(name))
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	return g, nil
}

// NodeRun runs a command on a node, or on the external host, and returns what
// it wrote to stdout. An exit code other than zero is an error that quotes
// stderr.
func (l *Lab) NodeRun(ctx context.Context, node string, args ...string) (string, error) {
	g, err := l.Node(node)
	if err != nil {
		return "", err
	}
	out, err := g.Output(ctx, args...)
	return out, wrap(node, err)
}

// NodeScript runs a shell script of the host on a node and returns everything
// it wrote.
func (l *Lab) NodeScript(ctx context.Context, node, path string) (string, error) {
	g, err := l.Node(node)
	if err != nil {
		return "", err
	}
	text, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer text.Close()
	var out bytes.Buffer
	code, err := g.Run(ctx, guest.Cmd{Args: []string{"/bin/sh", "-s"}, Stdin: text, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit status %d: %s", path, code, tail(out.Bytes(), 10))
	}
	return out.String(), wrap(node, err)
}

// LoadImage imports an image archive of the host (docker or OCI) on all nodes,
// where pods can use it by the name it has in the archive.
func (l *Lab) LoadImage(ctx context.Context, path string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range l.Nodes() {
		g.Go(func() error {
			n, err := l.Node(name)
			if err != nil {
				return err
			}
			return loadImage(ctx, n, path)
		})
	}
	return g.Wait()
}

// Logs maps each component of the lab to the file with its output, such as
// "kube-apiserver", "node1/kubelet" and "node1/console".
func (l *Lab) Logs() (map[string]string, error) {
	logs := map[string]string{}
	add := func(prefix, pattern string) error {
		files, err := filepath.Glob(pattern)
		for _, f := range files {
			logs[prefix+strings.TrimSuffix(filepath.Base(f), ".log")] = f
		}
		return err
	}
	err := add("", l.log("*"))
	for _, n := range l.state.Guests {
		dir := l.guest(n.Name)
		err = errors.Join(err, add(n.Name+"/", filepath.Join(dir, "*.log")), add(n.Name+"/", filepath.Join(dir, "log", "*.log")))
	}
	return logs, err
}

// A Status is the state of a lab at one moment.
type Status struct {
	Name       string            `json:"name"`
	Running    bool              `json:"running"`
	NetNS      string            `json:"netns"`
	Kubeconfig string            `json:"kubeconfig"`
	Components []ComponentStatus `json:"components"`
	Nodes      []NodeStatus      `json:"nodes"`
}

// ComponentStatus is the state of a program of the control plane.
type ComponentStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
}

// NodeStatus is the state of a node, or of the external host, which is never
// Ready and has no PodCIDR.
type NodeStatus struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"address"`
	Running bool       `json:"running"`
	Ready   bool       `json:"ready"`
	PodCIDR string     `json:"podCIDR,omitempty"`
	// Message says why a node is not Ready.
	Message string `json:"message,omitempty"`
}

// Status looks at every part of the lab.
func (l *Lab) Status(ctx context.Context) Status {
	s := Status{Name: l.Name(), NetNS: l.netns(), Kubeconfig: l.Kubeconfig(), Running: l.state.Up}
	for _, p := range l.state.Processes {
		c := ComponentStatus{Name: p.Name, PID: p.PID, Running: p.running()}
		s.Running = s.Running && c.Running
		s.Components = append(s.Components, c)
	}
	for _, n := range l.state.Guests {
		st := l.nodeStatus(ctx, n)
		s.Running = s.Running && st.Running
		s.Nodes = append(s.Nodes, st)
	}
	return s
}

func (l *Lab) nodeStatus(ctx context.Context, n node) NodeStatus {
	st := NodeStatus{Name: n.Name, Addr: n.Addr}
	if g, err := guest.Open(l.guest(n.Name)); err == nil {
		st.Running = g.Running()
	}
	if n.Name == External {
		return st
	}
	ns, err := netns.Open(l.netns())
	if err != nil {
		st.Message = err.Error()
		return st
	}
	defer ns.Close()
	st.describe(ctx, l.paths, ns)
	return st
}

// describe asks the API server what it knows of the node.
func (st *NodeStatus) describe(ctx context.Context, p paths, ns *netns.NS) {
	a, err := newAPI(p, ns)
	if err != nil {
		st.Message = err.Error()
		return
	}
	defer a.http.CloseIdleConnections()
	n, err := a.node(ctx, st.Name)
	if err == nil {
		st.PodCIDR = n.Spec.PodCIDR
		err = nodeReady(n, time.Time{})
	}
	if err != nil {
		st.Message = err.Error()
	}
	st.Ready = err == nil
}
