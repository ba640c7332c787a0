// Package guest boots programs under a kernel of their own: Debian's
// user-mode-linux, a Linux kernel that runs as an ordinary process, or, with
// everything that a distribution's kernel has, Debian's cloud kernel under QEMU.
//
// A guest sees the file tree of the machine it runs on through an overlay: it
// can run every program that is installed there, and what it writes goes to
// its own memory. It has what the machine's kernel may lack (802.1Q, bridge
// VLAN filtering, ipvlan, dummy, vrf), network links that are taps of the
// machine, and an agent that runs commands in it. Nothing needs KVM, an image
// or a download.
//
// The guest's kernel does not learn what the host changes in its tree after the
// guest has looked: hand new files over with WriteFile, a Share that is new to
// the guest, or Cmd.Stdin.
//
// Everything a guest consists of lives in one pid namespace: when its first
// process is gone, all of it is gone.
package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
)

// Config describes a guest. Name and Dir are required.
type Config struct {
	// Name is what the guest is called in messages: lower case letters,
	// digits and '-', at most 32.
	Name string
	// Hostname is the guest's host name; Name when empty.
	Hostname string
	// MemoryMiB is the memory of the guest; 512 when zero. It is taken from
	// /dev/shm page by page as the guest first touches it.
	MemoryMiB int
	// Dir is a directory of the host that belongs to this guest alone: the
	// console log, daemon logs, the token of the agent, the pid. Start makes
	// it; Stop leaves it, so that logs can be read afterwards.
	Dir string
	// NetNS is the path of the network namespace that the taps live in and
	// that the guest's process runs in; the caller's own when empty.
	NetNS string
	// Cgroup is a cgroup v2 directory that the guest's processes are born
	// in; the caller's own when empty.
	Cgroup string
	// NICs are the links of the guest, in order. Start needs one with an
	// address: the agent answers there.
	NICs []NIC
	// Hosts are additional entries of the guest's /etc/hosts, name to address.
	Hosts map[string]netip.Addr
	// Tmpfs are directories that shall be empty and in memory in the guest,
	// in addition to /run, /dev/shm, /etc/cni, /opt/cni,
	// /var/lib/{braid,cni,containerd,kubelet}, /var/log/{containers,pods}.
	// Everything else is the host's, copied on write to memory. With a Disk, all
	// but the first two are on it.
	// A program that mounts an overlay itself needs its directory here.
	Tmpfs []string
	// Disk is a directory of the host that keeps what the guest writes for the
	// next one that is started with it, as the disk of a machine does over its
	// restarts; in memory when empty. With a kernel of its own a guest has in it
	// the image of a disk of at most diskSize; one that does not power off loses
	// what its kernel had not written yet. A throw-away guest has none.
	Disk string
	// Shares are directories of the host that the guest may write to.
	Shares []Share
	// Modules are loaded at boot, in addition to what Braid always needs.
	// All others are loaded by the guest's kernel or modprobe on demand.
	Modules []string
	// Sysctls are set at boot, such as net.ipv4.ip_forward: 1.
	Sysctls map[string]string
	// Kernel is what the guest runs on; UML when empty.
	Kernel Kernel
	// Processors is how many a guest under QEMU has; one when 0. More make it
	// faster, and carry a risk: QEMU 7.2 may keep a translation of code that one
	// processor reads while another changes it. Linux changes its own while it
	// runs (static keys, by way of int3), and rarely all processors stand for ever
	// at an int3 that is in memory no longer. Most of that is over when a guest
	// has booted, for which it uses one.
	Processors int
	// Program is the user-mode-linux program, or QEMU's; found on PATH when empty.
	Program string
	// Init is the program of internal/guest/init; when empty it is the
	// program braid-guest-init beside the running one, or is built from this
	// module's source into the user's cache directory.
	Init string

	linux  linux // what QEMU boots, once it is known
	tscKHz int   // rate of the counter that QEMU's guest has of this machine, once it is known; 0: unknown
}

// Kernel is a kind of kernel that a guest can run on.
type Kernel string

const (
	// UML is Debian's user-mode-linux: up within three seconds, one processor, no
	// nftables for IP, no perf events, no Go race detector.
	UML Kernel = "uml"
	// QEMU is Debian's cloud kernel on a processor that QEMU emulates: all that
	// UML lacks. What computes takes long there. The kernel is downloaded from
	// Debian's mirror once.
	QEMU Kernel = "qemu"
	// Host is the machine's own kernel: the guest is a process in network,
	// mount, pid, IPC and UTS namespaces of its own. It sees the same file tree
	// in the same way and is used in the same way, except that MemoryMiB,
	// Modules and Program mean nothing, its cgroups are the machine's, and its
	// links are veth pairs. Mounts below / of the machine, /dev aside, are not in
	// its tree. Throw-away guests cannot have it.
	Host Kernel = "host"
)

// Kernels are all of them.
var Kernels = []Kernel{UML, QEMU, Host}

// NIC is one link of a guest.
type NIC struct {
	// Name is the link's name in the guest, such as eth0 or trunk0.
	Name string
	// Tap is the name of the link's other end in Config.NetNS, at most 15
	// characters. Start creates it when it does not exist, sets it up, and
	// Stop deletes it again. On the kernel Host it is the end of a veth pair,
	// which goes with the guest.
	Tap string
	// Bridge is the bridge in Config.NetNS that the tap becomes a port of,
	// unless it is the port of one already; none when empty. A bridge without VLAN filtering passes 802.1Q frames.
	Bridge string
	// MAC is the address of the link in the guest; derived from the guest's
	// name and the link's when nil.
	MAC net.HardwareAddr
	// Addr is the address of the link with the length of its network, if any.
	Addr netip.Prefix
	// Gateway is where the default route through this link goes, if any.
	Gateway netip.Addr
	// MTU is the MTU of the link and its tap; 1500 when zero.
	MTU int
}

// Share makes the directory Host of the host appear as Guest in the guest, for
// reading and writing. What the guest writes reaches the host at the latest
// when the guest calls fsync or powers off; what the host changes in a file
// that the guest has already read may stay unseen.
type Share struct {
	Host, Guest string
}

// Cmd is a command to run in a guest.
type Cmd struct {
	// Args is the program, found on the guest's PATH when it has no slash,
	// and its arguments.
	Args []string
	// Env is added to the guest's basic environment (PATH, HOME, LANG).
	Env []string
	// Dir is the working directory; / when empty.
	Dir string
	// Stdin is the command's input; none when nil.
	Stdin io.Reader
	// Stdout and Stderr receive the command's output as it is written;
	// discarded when nil.
	Stdout, Stderr io.Writer
}

// Daemon is a program that the guest's init keeps running.
type Daemon struct {
	// Name identifies the daemon in the guest; its output is appended to the
	// host's file Dir/log/NAME.log as it is written.
	Name string
	// Args, Env and Dir are as in Cmd.
	Args []string
	Env  []string
	Dir  string
	// Restart starts the program again, one second after it ended by itself.
	Restart bool
}

// DaemonStatus is what init knows of a daemon.
type DaemonStatus struct {
	Name string `json:"name"`
	// PID is the process in the guest; 0 when it does not run.
	PID int `json:"pid"`
	// Starts counts how often the program was started.
	Starts int `json:"starts"`
	// Exit is the last exit status ("exit status 1", "signal: killed"),
	// empty when it never ended.
	Exit string `json:"exit,omitempty"`
}

// ErrNotRunning is returned for a guest whose process is gone.
var ErrNotRunning = errors.New("guest is not running")

// Guest is a running guest.
type Guest struct {
	state state
	dir   string
}

// Start boots a guest that survives the calling process, and returns once its
// agent answers. ctx bounds the wait. When Start returns an error nothing is
// left running and its taps are gone; the error quotes the end of the console.
func Start(ctx context.Context, c Config) (*Guest, error) { return start(ctx, c) }

// Open finds the guest that an earlier process started with Config.Dir = dir.
// errors.Is(err, fs.ErrNotExist) holds when none was; a guest that has ended
// since can be opened, to read its logs and to Stop what is left of it.
func Open(dir string) (*Guest, error) { return open(dir) }

// Run runs cmd in the guest and returns its exit code: 128 + n when signal n
// killed it. When ctx ends, the command's process group is killed. The error
// is about running the command at all, never about its exit code.
func (g *Guest) Run(ctx context.Context, cmd Cmd) (exitCode int, err error) { return g.run(ctx, cmd) }

// Output runs args in the guest and returns what it wrote to stdout. An exit
// code other than zero is an error that quotes the end of stderr.
func (g *Guest) Output(ctx context.Context, args ...string) (string, error) {
	return g.output(ctx, args)
}

// WriteFile writes a file in the guest, making its directory when needed.
func (g *Guest) WriteFile(ctx context.Context, path string, data []byte, perm uint32) error {
	return g.writeFile(ctx, path, data, perm)
}

// StartDaemon starts d under the supervision of the guest's init and returns
// once it was executed. A daemon of that name must not be running.
func (g *Guest) StartDaemon(ctx context.Context, d Daemon) error { return g.startDaemon(ctx, d) }

// StopDaemon sends SIGTERM, and SIGKILL after ten seconds or when ctx ends, and
// returns when the daemon is gone. It is not started again. Stopping what does
// not run succeeds.
func (g *Guest) StopDaemon(ctx context.Context, name string) error { return g.stopDaemon(ctx, name) }

// SignalDaemon sends signal number sig to the daemon. One with Restart that
// dies of it is started again.
func (g *Guest) SignalDaemon(ctx context.Context, name string, sig int) error {
	return g.signalDaemon(ctx, name, sig)
}

// Daemons lists the daemons that were started, by name.
func (g *Guest) Daemons(ctx context.Context) ([]DaemonStatus, error) { return g.daemons(ctx) }

// DaemonLog is the host's file with the output of the named daemon.
func (g *Guest) DaemonLog(name string) string { return daemonLog(g.dir, name) }

// ConsoleLog is the host's file with the output of the guest's kernel.
func (g *Guest) ConsoleLog() string { return consoleLog(g.dir) }

// Name is the guest's name.
func (g *Guest) Name() string { return g.state.Name }

// PID is the host's process that all of the guest lives and dies with.
func (g *Guest) PID() int { return g.state.PID }

// Running reports whether the guest's processes exist.
func (g *Guest) Running() bool { return g.running() }

// Stop powers the guest off, or kills it when that does not happen within five
// seconds or until ctx ends, and deletes its taps. It returns when no process
// of the guest is left. Stopping a stopped guest succeeds.
func (g *Guest) Stop(ctx context.Context) error { return g.stop(ctx) }

// RunOnce boots a throw-away guest, runs cmd in it, and returns the exit code
// when the guest is gone. It needs no NIC. When ctx ends, the command gets
// SIGQUIT, so that a Go program tells where it was, and two seconds later the
// guest is killed; the error is then that of ctx, with the exit code if there
// was one. When the calling process dies, so does the guest.
// Cmd.Stdin is not supported. Config.Dir may be empty: RunOnce then uses a
// temporary directory and removes it.
func RunOnce(ctx context.Context, c Config, cmd Cmd) (exitCode int, err error) {
	return runOnce(ctx, c, cmd)
}
