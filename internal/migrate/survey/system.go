package survey

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// system is what the node runs.
func (s *survey) system() {
	s.node.Kernel = s.host.word("/proc/sys/kernel/osrelease")
	s.node.BootID = s.host.word("/proc/sys/kernel/random/boot_id")
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if text, _, err := s.host.read(path, maxText); err == nil {
			s.node.OS = prettyName(text)
			break
		}
	}
	if s.node.Kernel == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			s.problem("the kernel's release is not known: %v", err)
		}
		s.node.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if s.node.BootID == "" {
		s.problem("the boot id is not known: the host's /proc is not at %s", s.Root.Path("/proc"))
	}
}

// prettyName is the name for people in os-release(5).
func prettyName(text string) string {
	lines := bufio.NewScanner(strings.NewReader(text))
	name := ""
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || key != "PRETTY_NAME" && (key != "NAME" || name != "") {
			continue
		}
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		name = strings.Trim(value, `'"`)
		if key == "PRETTY_NAME" {
			break
		}
	}
	return name
}

// settings are those below /proc/sys/net that decide whether pods of two CNIs
// reach each other. Some exist only with the modules that they are of.
var settings = []string{
	"ipv4/ip_forward", "ipv4/conf/all/forwarding", "ipv4/conf/default/forwarding",
	"ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter",
	"ipv4/ip_local_port_range", "ipv4/ip_local_reserved_ports", "ipv4/tcp_mtu_probing",
	"ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding", "ipv6/conf/all/disable_ipv6",
	"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables",
	"netfilter/nf_conntrack_tcp_be_liberal", "netfilter/nf_conntrack_max",
	"core/bpf_jit_enable",
}

// ofLinks are settings that every link has a value of its own for.
var ofLinks = []string{"ipv4/conf/%s/rp_filter", "ipv4/conf/%s/forwarding"}

func (s *survey) sysctls() {
	paths := append([]string(nil), settings...)
	for _, l := range s.node.Links {
		for _, format := range ofLinks {
			paths = append(paths, fmt.Sprintf(format, l.Name))
		}
	}
	s.node.Sysctls = map[string]string{}
	for _, path := range paths {
		value, err := rtnl.Sysctl{}.Get(nil, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // this kernel, or this namespace, has no such setting
		}
		if err != nil {
			s.problem("%v", err)
			continue
		}
		s.node.Sysctls["net."+strings.ReplaceAll(path, "/", ".")] = strings.Join(strings.Fields(value), " ")
	}
}

// tries make a link of each kind that a CNI may need.
var tries = map[string]func(h *rtnl.Handle, n rtnl.New) (rtnl.Link, error){
	"vxlan": func(h *rtnl.Handle, n rtnl.New) (rtnl.Link, error) {
		return h.AddTunnel(n, rtnl.Tunnel{Kind: "vxlan", Port: 8472, External: true})
	},
	"geneve": func(h *rtnl.Handle, n rtnl.New) (rtnl.Link, error) {
		return h.AddTunnel(n, rtnl.Tunnel{Kind: "geneve", ID: 1, Port: 6081, Remote: netip.AddrFrom4([4]byte{192, 0, 2, 1})})
	},
	"ipvlan": func(h *rtnl.Handle, n rtnl.New) (rtnl.Link, error) {
		lower, err := h.AddVeth(rtnl.Veth{New: rtnl.New{Name: "braidtrylower"}, Peer: rtnl.New{Name: "braidtrypeer"}})
		if err != nil {
			return rtnl.Link{}, err
		}
		return h.AddIPVlan(n, lower.Index)
	},
}

// fileSystems are kinds that a CNI may need, by their names in
// /proc/filesystems, with the magic number and the usual places.
var fileSystems = []struct {
	name, kernel string
	magic        int64
	places       []string
}{
	{"bpffs", "bpf", unix.BPF_FS_MAGIC, []string{"/sys/fs/bpf"}},
	{"cgroup2", "cgroup2", unix.CGROUP2_SUPER_MAGIC, []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/run/cilium/cgroupv2"}},
}

// features tries what the kernel can do. A kind of link counts when one can be
// made, in a namespace that exists for that only; a file system counts when the
// kernel has it, and NAME-mounted says whether it is mounted where CNIs look.
func (s *survey) features() {
	s.node.Features = map[string]bool{}
	if err := s.tryLinks(); err != nil {
		s.problem("which links the kernel has is not known: %v", err)
	}
	known, _, err := s.host.read("/proc/filesystems", maxText)
	if err != nil {
		s.problem("the kernel's file systems are not known: %v", err)
	}
	for _, f := range fileSystems {
		mounted := false
		for _, place := range f.places {
			mounted = mounted || s.host.magic(place) == f.magic
		}
		s.node.Features[f.name+"-mounted"] = mounted
		if err == nil || mounted {
			s.node.Features[f.name] = mounted || hasFileSystem(known, f.kernel)
		}
	}
}

func hasFileSystem(text, name string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

// tryLinks makes the links in a namespace that goes away with them.
func (s *survey) tryLinks() (err error) {
	ns, err := netns.NewUnnamed()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	h, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for kind, try := range tries {
		_, err := try(h, rtnl.New{Name: "braidtry" + kind})
		if err == nil || errors.Is(err, unix.EOPNOTSUPP) { // what the kernel says of a kind that it does not have
			s.node.Features[kind] = err == nil
			continue
		}
		s.problem("whether the kernel has %s is not known: %v", kind, err)
	}
	return nil
}
