package guest

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/guest/control"
)

// Files in Config.Dir.
const (
	stateName   = "guest.json"
	bootName    = "boot.json"
	consoleName = "console.log"
	logName     = "log" // directory of the daemon logs
)

func consoleLog(dir string) string      { return filepath.Join(dir, consoleName) }
func daemonLog(dir, name string) string { return filepath.Join(dir, logName, name+".log") }

// state is what a later process must know to talk to a guest and to end it.
type state struct {
	Name string
	process
	NetNS string
	Agent netip.AddrPort
	Token string
	Taps  []string // created by Start
	Pairs []string // the same for a guest without a kernel, veth pairs
}

func (s state) save(dir string) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stateName+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stateName))
}

func open(dir string) (*Guest, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open guest: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return nil, fmt.Errorf("open guest: %w", err)
	}
	g := &Guest{dir: dir}
	if err := json.Unmarshal(data, &g.state); err != nil {
		return nil, fmt.Errorf("open guest: %s: %w", filepath.Join(dir, stateName), err)
	}
	return g, nil
}

func start(ctx context.Context, c Config) (*Guest, error) {
	g, err := startAgent(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start guest %s: %w", c.Name, err)
	}
	return g, nil
}

func startAgent(ctx context.Context, c Config) (*Guest, error) {
	c, err := prepare(ctx, c)
	if err != nil {
		return nil, err
	}
	g := &Guest{dir: c.Dir, state: state{Name: c.Name, NetNS: c.NetNS, Token: randomHex()}}
	if g.state.Agent, err = agentAddr(c.NICs); err != nil {
		return nil, err
	}
	b := bootConfig(c)
	b.Token = g.state.Token
	l, err := g.launch(c, b, nil)
	if err != nil {
		return nil, errors.Join(err, g.abandon(ctx))
	}
	if err := l.awaitReady(ctx); err != nil {
		err = fmt.Errorf("%w%s", err, consoleTail(c.Dir))
		return nil, errors.Join(err, g.abandon(ctx))
	}
	return g, nil
}

// bootConfig is what init is told, on the guest's kind of kernel.
func bootConfig(c Config) control.Boot {
	b := umlBoot(c, hostClock())
	switch c.Kernel {
	case Host:
		return sharedBoot(c, b)
	case QEMU:
		return qemuBoot(c, b)
	default:
		return b
	}
}

// abandon removes what a failed start has left, whether or not ctx is over.
func (g *Guest) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	return g.remove(ctx)
}

// prepare completes c and makes its directory.
func prepare(ctx context.Context, c Config) (Config, error) {
	c, err := c.normalize()
	if err != nil {
		return c, err
	}
	if c.Kernel != Host {
		if err := checkMemory(c.MemoryMiB); err != nil {
			return c, err
		}
	}
	if old, err := open(c.Dir); err == nil && old.running() {
		return c, fmt.Errorf("%s belongs to guest %s, which runs as process %d", c.Dir, old.Name(), old.PID())
	}
	if c.Program == "" && c.Kernel != Host {
		if c.Program, err = findProgram(c.Kernel); err != nil {
			return c, err
		}
	}
	if c.Kernel == QEMU {
		if _, err := os.Stat(virtiofsdPath); err != nil {
			return c, fmt.Errorf("the server of the guest's root: %w (Debian 12's qemu-system-common)", err)
		}
		if c.linux, err = fetchLinux(ctx); err != nil {
			return c, err
		}
		c.tscKHz = measureTSC()
	}
	if c.Init == "" {
		if c.Init, err = findInit(ctx); err != nil {
			return c, err
		}
	}
	if c.Init, err = filepath.Abs(c.Init); err != nil {
		return c, err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, logName), 0o755); err != nil {
		return c, err
	}
	return c, makeDisk(ctx, c)
}

// memoryDir is where user-mode-linux keeps the guest's memory, in a file
// without a name.
const memoryDir = "/dev/shm"

// checkMemory refuses a guest that would be killed as soon as it uses the
// memory that it was promised.
func checkMemory(mib int) error {
	var st unix.Statfs_t
	if err := unix.Statfs(memoryDir, &st); err != nil {
		return fmt.Errorf("memory in %s: %w", memoryDir, err)
	}
	if free := int64(st.Bavail) * st.Bsize >> 20; free < int64(mib) {
		return fmt.Errorf("%d MiB of memory: only %d MiB are free in %s", mib, free, memoryDir)
	}
	return nil
}

// launched is the starter's view of a guest that boots.
type launched struct {
	status *os.File      // status lines, until the guest is gone
	exited chan struct{} // closed when its first process has been collected
}

// terminals are the host's ends of the terminals of a throw-away guest.
type terminals struct {
	stdout, stderr, input *os.File
}

// launch starts the processes of a guest and records them in its directory
// before the kernel runs. With terminals, the guest dies with this process.
func (g *Guest) launch(c Config, b control.Boot, t *terminals) (*launched, error) {
	b.Seed = make([]byte, 64)
	rand.Read(b.Seed) // never fails
	if err := writeBoot(c.Dir, b); err != nil {
		return nil, err
	}
	if c.Kernel == Host {
		g.namePairs(c)
	} else if err := g.makeTaps(c); err != nil {
		return nil, err
	}
	if c.Kernel == QEMU {
		if err := writeInitrd(c); err != nil {
			return nil, fmt.Errorf("initial file tree: %w", err)
		}
	}
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer statusW.Close()
	cmd, err := supervisor(c, t)
	if err != nil {
		return nil, errors.Join(err, statusR.Close())
	}
	defer closeAll(append(cmd.ExtraFiles, cmd.Stdout.(*os.File)))
	cmd.ExtraFiles[0] = statusW
	if err := g.startRecorded(c, cmd); err != nil {
		return nil, errors.Join(err, statusR.Close())
	}
	l := &launched{status: statusR, exited: make(chan struct{})}
	go func() {
		defer close(l.exited)
		cmd.Wait() // collects the process; the console log has its reason
	}()
	return l, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func writeBoot(dir string, b control.Boot) error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, bootName), data, 0o600)
}

func (g *Guest) makeTaps(c Config) error {
	return inNS(c.NetNS, func() error {
		for _, n := range c.NICs {
			created, err := makeTap(n)
			if err != nil {
				return fmt.Errorf("link %s: %w", n.Name, err)
			}
			if created {
				g.state.Taps = append(g.state.Taps, n.Tap)
			}
		}
		return nil
	})
}

// supervisor is the first process of the guest's pid namespace. The caller
// sets ExtraFiles[0] and closes all of them after the start.
func supervisor(c Config, t *terminals) (*exec.Cmd, error) {
	console, err := os.OpenFile(consoleLog(c.Dir), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if t == nil {
		// QEMU takes a descriptor for output only when it is for that alone.
		out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return nil, errors.Join(err, console.Close())
		}
		in, err := os.Open(os.DevNull)
		if err != nil {
			return nil, errors.Join(err, out.Close(), console.Close())
		}
		t = &terminals{out, out, in}
	} else {
		attr.Pdeathsig = unix.SIGKILL
	}
	if c.Kernel == Host {
		attr.Cloneflags |= sharedNamespaces
	}
	cmd := exec.Command(c.Init, initArgs(c, filepath.Join(c.Dir, bootName))...)
	cmd.Dir = c.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "TMPDIR=" + memoryDir}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{nil, t.stdout, t.stderr, t.input}
	cmd.SysProcAttr = attr
	return cmd, nil
}

// initArgs is what init does on the host.
func initArgs(c Config, bootFile string) []string {
	switch c.Kernel {
	case Host:
		return []string{"host", bootFile}
	case QEMU:
		return slices.Concat([]string{"emulate", shareSocket}, virtiofsdArgs(), []string{"--"}, qemuArgs(c, bootFile))
	default:
		return append([]string{"supervise"}, umlArgs(c, bootFile)...)
	}
}

// startRecorded starts cmd and lets it go on only when the state file names
// it: if this process dies in between, cmd reads the end of its stdin and ends.
func (g *Guest) startRecorded(c Config, cmd *exec.Cmd) error {
	if c.Cgroup != "" {
		dir, err := os.Open(c.Cgroup)
		if err != nil {
			return err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	gate, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer gate.Close()
	if err := inNS(c.NetNS, cmd.Start); err != nil {
		return err
	}
	if g.state.process, err = identify(cmd.Process.Pid); err == nil {
		err = g.state.save(c.Dir)
	}
	if err == nil && c.Kernel == Host {
		err = makePairs(c, cmd.Process.Pid)
	}
	if err == nil {
		_, err = gate.Write([]byte("\n"))
	}
	if err != nil {
		gate.Close()
		return errors.Join(err, cmd.Wait())
	}
	return nil
}

// awaitReady waits for the guest's word that its agent answers.
func (l *launched) awaitReady(ctx context.Context) error {
	defer l.status.Close()
	defer context.AfterFunc(ctx, func() { l.status.SetReadDeadline(time.Now()) })()
	word, arg, err := readStatus(bufio.NewReader(l.status))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("not ready yet: %w", context.Cause(ctx))
	case err != nil:
		return err
	case word == control.StatusFail:
		return errors.New(arg)
	case word != control.StatusReady:
		return fmt.Errorf("guest says %q instead of being ready", word)
	}
	return nil
}

// errDied is a guest that ended without a word.
var errDied = errors.New("the guest's kernel has ended")

// readStatus reads one status line.
func readStatus(r *bufio.Reader) (word, arg string, err error) {
	line, err := r.ReadString('\n')
	if errors.Is(err, io.EOF) {
		return "", "", errDied
	}
	if err != nil {
		return "", "", fmt.Errorf("status of the guest: %w", err)
	}
	if _, err := fmt.Sscanf(line, "%s %q\n", &word, &arg); err != nil {
		return "", "", fmt.Errorf("status line %q: %w", line, err)
	}
	return word, arg, nil
}

// consoleTail quotes the end of the console log for an error message.
func consoleTail(dir string) string {
	data, err := os.ReadFile(consoleLog(dir))
	if err != nil {
		return "; console: " + err.Error()
	}
	words := strings.Join(lastWords(string(data)), "\n\t")
	return fmt.Sprintf("; end of %s:\n\t%s", consoleLog(dir), words)
}

// lastWords are the last lines of a console, from the panic on if there was one.
func lastWords(console string) []string {
	const most = 15
	lines := strings.Split(strings.TrimSpace(console), "\n")
	from := max(0, len(lines)-most)
	for i, l := range lines {
		if strings.Contains(l, "Kernel panic") {
			from = min(from, i)
			break
		}
	}
	return lines[from:]
}

func hostClock() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return clockRate("")
	}
	return clockRate(string(info))
}

func randomHex() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
