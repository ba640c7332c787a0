package guest

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"braid.dev/braid/internal/guest/control"
)

const (
	defaultMemoryMiB = 512
	minMemoryMiB     = 64
	// moduleDir is where Debian's user-mode-linux keeps its modules.
	moduleDir = "/usr/lib/uml/modules"
	// maxLink is IFNAMSIZ without the final zero byte.
	maxLink = 15
)

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// normalize returns c with its defaults filled in, or says what is wrong.
func (c Config) normalize() (Config, error) {
	if !validName.MatchString(c.Name) {
		return c, fmt.Errorf("name %q: want 1 to 32 of a-z, 0-9 and '-'", c.Name)
	}
	if c.Dir == "" {
		return c, errors.New("no directory")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, err
	}
	c.Dir = dir
	if strings.ContainsAny(c.Dir, " \t\n\"") {
		return c, fmt.Errorf("directory %q: no spaces or quotes, it stands on a kernel command line", c.Dir)
	}
	if c.Kernel == "" {
		c.Kernel = UML
	}
	if !slices.Contains(Kernels, c.Kernel) {
		return c, fmt.Errorf("kernel %q: there are %v", c.Kernel, Kernels)
	}
	if c.Hostname == "" {
		c.Hostname = c.Name
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = defaultMemoryMiB
	}
	if c.MemoryMiB < minMemoryMiB {
		return c, fmt.Errorf("%d MiB of memory: a guest needs %d", c.MemoryMiB, minMemoryMiB)
	}
	if c.Processors == 0 {
		c.Processors = 1
	}
	if c.Processors < 1 || c.Processors > 1 && c.Kernel != QEMU {
		return c, fmt.Errorf("%d processors: only under QEMU can there be more than one", c.Processors)
	}
	if c.Disk != "" {
		if c.Disk, err = filepath.Abs(c.Disk); err != nil {
			return c, err
		}
		if strings.ContainsAny(c.Disk, " \t\n\",") {
			return c, fmt.Errorf("disk %q: no spaces, quotes or commas, it stands on a command line", c.Disk)
		}
	}
	for _, s := range c.Shares {
		if !filepath.IsAbs(s.Host) || !filepath.IsAbs(s.Guest) || strings.Contains(s.Host, ",") {
			return c, fmt.Errorf("share %s as %s: want absolute paths without commas", s.Host, s.Guest)
		}
	}
	c.NICs = slices.Clone(c.NICs)
	for i := range c.NICs {
		if err := c.NICs[i].normalize(c.Name); err != nil {
			return c, fmt.Errorf("link %q: %w", c.NICs[i].Name, err)
		}
	}
	return c, nil
}

func (n *NIC) normalize(guest string) error {
	for _, name := range []string{n.Name, n.Tap} {
		if name == "" || len(name) > maxLink || strings.ContainsAny(name, "/ ,:=") {
			return fmt.Errorf("%q is no name of a link", name)
		}
	}
	if n.MAC == nil {
		n.MAC = deriveMAC(guest, n.Name, n.Tap)
	}
	if len(n.MAC) != 6 {
		return fmt.Errorf("MAC %s: want 6 bytes", n.MAC)
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		return fmt.Errorf("MTU %d", n.MTU)
	}
	if n.Gateway.IsValid() && !n.Addr.IsValid() {
		return fmt.Errorf("gateway %s without an address", n.Gateway)
	}
	return nil
}

// deriveMAC is a locally administered address that is the same for the same
// link at every boot.
func deriveMAC(parts ...string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&0xf0 | 0x02 // unicast, local
	return mac
}

// umlArgs is the command line of user-mode-linux.
func umlArgs(c Config, bootFile string) []string {
	args := []string{
		c.Program,
		fmt.Sprintf("mem=%dM", c.MemoryMiB),
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw",
		"init=" + c.Init,
		// Relative to the guest's directory: a unix socket lies in there, whose
		// path is limited to 107 bytes.
		"uml_dir=./uml/", "umid=guest",
		"con=null", fmt.Sprintf("con0=fd:%d,fd:1", control.InputFD),
		fmt.Sprintf("con1=null,fd:%d", control.FirstFD),
		fmt.Sprintf("con2=null,fd:%d", control.FirstFD+1),
		fmt.Sprintf("con3=null,fd:%d", control.FirstFD+2),
		"ssl=null", "quiet",
		// A second of the boot would measure algorithms for RAID, and a fifth
		// of one the length of a delay loop; nothing here uses either.
		"initcall_blacklist=raid6_select_algo,calibrate_xor_blocks", "lpj=20000000",
		control.BootEnv + "=" + bootFile,
	}
	if c.Disk != "" {
		args = append(args, "ubd0="+diskImage(c.Disk))
	}
	for i, n := range c.NICs {
		args = append(args, fmt.Sprintf("vec%d:transport=tap,ifname=%s,depth=128,gro=1,mac=%s", i, n.Tap, n.MAC))
	}
	return args
}

// umlBoot is what the guest's init is told under user-mode-linux.
func umlBoot(c Config, cpuMHz string) control.Boot {
	b := control.Boot{
		Hostname:  c.Hostname,
		CPUMHz:    cpuMHz,
		ModuleDir: moduleDir,
		Hostfs:    true,
		Modules:   c.Modules,
		Hosts:     maps.Clone(c.Hosts),
		Tmpfs:     c.Tmpfs,
		Sysctls:   c.Sysctls,
		Shares:    []control.Share{{Host: filepath.Join(c.Dir, logName), Guest: control.LogDir}},
	}
	for _, s := range c.Shares {
		b.Shares = append(b.Shares, control.Share(s))
	}
	if c.Disk != "" {
		b.Disk = &control.Disk{Device: "ubda"}
	}
	for i, n := range c.NICs {
		b.Links = append(b.Links, control.Link{
			Device: fmt.Sprintf("vec%d", i), Name: n.Name, Addr: n.Addr, Gateway: n.Gateway, MTU: n.MTU,
		})
	}
	return b
}

// agentAddr is where the agent of a guest with these links answers.
func agentAddr(nics []NIC) (netip.AddrPort, error) {
	for _, n := range nics {
		if n.Addr.IsValid() {
			return netip.AddrPortFrom(n.Addr.Addr(), control.Port), nil
		}
	}
	return netip.AddrPort{}, errors.New("no link with an address: the agent could not be reached")
}

// clockRate reads "cpu MHz" of the host's /proc/cpuinfo; virtual machines may
// have none.
func clockRate(cpuinfo string) string {
	for lines := bufio.NewScanner(strings.NewReader(cpuinfo)); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == "cpu MHz" {
			return strings.TrimSpace(v)
		}
	}
	return "1000.000"
}
