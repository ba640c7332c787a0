// Package differential compares Braid with the CNI reference plugins: the same
// configuration through both, each in namespaces of its own, and the two
// worlds and results side by side. What may differ, and why, is listed in
// docs/drivers.md.
package differential

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

const (
	containerID = "differential-test"
	// dirMark stands in configurations for a directory of the world's own.
	dirMark = "@DIR@"
)

// world is a node and a container, each a namespace of its own.
type world struct {
	node, pod         *netns.NS
	nodePath, podPath string
	dir               string
	c                 testCase
}

func newWorld(t *testing.T, c testCase) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), c: c}
	w.node, w.nodePath = kerneltest.NewNamedNS(t)
	w.pod, w.podPath = kerneltest.NewNamedNS(t)
	for _, side := range []struct {
		ns      *netns.NS
		prepare func(*testing.T, *rtnl.Handle)
	}{{w.node, c.node}, {w.pod, c.pod}} {
		if side.prepare != nil {
			h := must(rtnl.Open(side.ns))(t)
			side.prepare(t, h)
			h.Close()
		}
	}
	return w
}

// conf is the network's configuration as this world has it.
func (w *world) conf() []byte { return []byte(strings.ReplaceAll(w.c.list(), dirMark, w.dir)) }

// text describes everything that drivers may change.
func (w *world) text(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, side := range []struct {
		name string
		ns   *netns.NS
	}{{"node", w.node}, {"container", w.pod}} {
		fmt.Fprintf(&b, "-- %s\n%s%s", side.name, must(rtnl.ObserveAll(side.ns))(t), must(sysctls(side.ns))(t))
		if w.c.netfilter {
			b.WriteString(must(w.rules(side.ns))(t))
		}
	}
	return w.plain(b.String())
}

var (
	randomVeth = regexp.MustCompile(`\bveth[0-9a-f]{8}\b`)
	anyMAC     = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	counters   = regexp.MustCompile(`counter packets \d+ bytes \d+`)
)

// plain is text without what differs in every run: random names and MACs,
// paths, and packet counters.
func (w *world) plain(text string) string {
	text = strings.NewReplacer(w.podPath, "NETNS", w.dir, "DIR").Replace(text)
	text = randomVeth.ReplaceAllString(text, "veth#")
	text = counters.ReplaceAllString(text, "counter")
	asked := strings.ToLower(w.c.list() + w.c.args + w.c.capabilities)
	return anyMAC.ReplaceAllStringFunc(text, func(mac string) string {
		if strings.Contains(asked, mac) {
			return mac
		}
		return "MAC"
	})
}

const procSysNet = "/proc/sys/net"

// sysctls are the settings of every link that are not its namespace's default,
// and those of the namespace. In a guest, where a system call costs hundreds of
// times as much, they are those that drivers touch.
func sysctls(ns *netns.NS) (string, error) {
	var b strings.Builder
	err := ns.Do(func() error {
		for _, family := range []string{"ipv4/conf", "ipv6/conf"} {
			if err := linkSysctls(&b, family); err != nil {
				return err
			}
		}
		if inGuest() {
			describe(&b, "ipv4", map[string]string{"ip_forward": ""})
			return nil
		}
		for _, dir := range []string{"ipv4", "core"} {
			all, err := settings(dir)
			if err != nil {
				return err
			}
			describe(&b, dir, all)
		}
		return nil
	})
	return b.String(), err
}

// touched are the settings of links that drivers touch.
var touched = []string{
	"accept_dad", "accept_ra", "addr_gen_mode", "arp_filter", "arp_notify", "disable_ipv6", "enhanced_dad", "forwarding",
	"keep_addr_on_down", "mtu", "ndisc_notify", "proxy_arp", "proxy_ndp", "route_localnet", "rp_filter",
}

func linkSysctls(b *strings.Builder, family string) error {
	links, err := os.ReadDir(filepath.Join(procSysNet, family))
	if err != nil {
		return err
	}
	defaults, err := settings(filepath.Join(family, "default"))
	if err != nil {
		return err
	}
	for _, l := range links {
		like := defaults
		if l.Name() == "default" {
			like = map[string]string{}
			for name := range defaults {
				like[name] = ""
			}
		}
		describe(b, filepath.Join(family, l.Name()), like)
	}
	return nil
}

// settings reads those of a directory that can be read.
func settings(dir string) (map[string]string, error) {
	names := touched
	if !inGuest() {
		files, err := os.ReadDir(filepath.Join(procSysNet, dir))
		if err != nil {
			return nil, err
		}
		names = nil
		for _, f := range files {
			names = append(names, f.Name())
		}
	}
	all := map[string]string{}
	for _, name := range names {
		if value, ok := setting(filepath.Join(dir, name)); ok {
			all[name] = value
		}
	}
	if !strings.Contains(dir, "conf") {
		for name := range all {
			all[name] = ""
		}
	}
	return all, nil
}

// describe prints the settings of a directory that are not as they are given.
func describe(b *strings.Builder, dir string, like map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(like)) {
		if v, ok := setting(filepath.Join(dir, name)); ok && v != like[name] {
			fmt.Fprintf(b, "sysctl %s = %s\n", filepath.Join(dir, name), v)
		}
	}
}

// setting reads one, by no more system calls than it takes.
func setting(path string) (value string, ok bool) {
	fd, err := unix.Open(filepath.Join(procSysNet, path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(buf[:n])), true
}

// rules are the netfilter rules of a namespace. A kernel whose nftables cannot
// hold them has them in the old tables.
func (w *world) rules(ns *netns.NS) (string, error) {
	commands := [][]string{{"nft", "list", "ruleset"}}
	if inGuest() {
		commands = [][]string{{"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"nft", "list", "ruleset"}}
	}
	var b strings.Builder
	for _, args := range commands {
		out, err := run(ns, exec.Command(args[0], args[1:]...))
		if err != nil {
			return "", err
		}
		text := withoutLines(string(out), regexp.MustCompile(`^#`))
		b.WriteString(inOrder(text))
	}
	return b.String(), nil
}

// inOrder sorts what nft lists in the order in which it was made: tables, and
// the chains and maps in them. Rules keep their order, which means something.
func inOrder(ruleset string) string {
	var tables []string
	var head string
	var blocks []string
	block := ""
	for line := range strings.Lines(ruleset) {
		switch {
		case strings.HasPrefix(line, "table "):
			head, blocks = line, nil
		case head == "":
			tables = append(tables, line) // not of nft
		case line == "}\n":
			slices.Sort(blocks)
			tables = append(tables, head+strings.Join(blocks, "")+line)
			head = ""
		case strings.HasPrefix(line, "\t") && strings.HasSuffix(line, "{\n") && block == "":
			block = line
		case line == "\t}\n":
			blocks, block = append(blocks, block+line), ""
		case block != "":
			block += line
		case line != "\n":
			head += line
		}
	}
	if slices.ContainsFunc(tables, func(t string) bool { return strings.HasPrefix(t, "table ") }) {
		slices.Sort(tables)
	}
	return strings.Join(tables, "")
}

// run runs a program inside ns.
func run(ns *netns.NS, cmd *exec.Cmd) (out []byte, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = ns.Do(func() error {
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", filepath.Base(cmd.Path), err, out, stderr.Bytes())
	}
	return out, err
}

// canonical is a result with its keys in order. The MACs in it must be those
// of the links.
func (w *world) canonical(t *testing.T, raw []byte) string {
	t.Helper()
	for _, i := range must(create(raw))(t).Interfaces {
		ns := w.node
		if i.Sandbox != "" {
			ns = w.pod
		}
		h := must(rtnl.Open(ns))(t)
		if l, err := h.Link(i.Name); err != nil {
			t.Errorf("the result has an interface that is not there: %v", err)
		} else if i.Mac != "" && i.Mac != "00:00:00:00:00:00" && i.Mac != l.MAC.String() {
			t.Errorf("the result says that %s has mac %s, and it has %s", i.Name, i.Mac, l.MAC)
		}
		h.Close()
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return w.plain(string(must(json.MarshalIndent(v, "", "  "))(t))) + "\n"
}

// leftovers are the files that remain in the world's directory.
func (w *world) leftovers(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip") {
			files = append(files, strings.TrimPrefix(path, w.dir))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

func inGuest() bool { return os.Getenv(kerneltest.EnvTier) == string(kerneltest.Guest) }

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
