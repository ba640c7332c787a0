// Package control is what the host and the init of a guest say to each other:
// the boot file that a guest starts with, and the protocol of its agent.
package control

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
)

// Port is the TCP port that the agent listens on in the guest.
const Port = 61

// BootEnv is the environment variable that tells init the path of its boot file.
const BootEnv = "BRAID_BOOT"

// TTYEnv is the environment variable with what precedes the number of a
// terminal in its path; DefaultTTY unless it is set.
const TTYEnv = "BRAID_TTY"

// RootTag is the virtiofs file system that is the host's tree.
const RootTag = "braid-root"

// InitrdModules is where an initial file tree holds the modules that it takes
// to mount RootTag, in the order of loading.
const InitrdModules = "/modules"

// LogDir is where the guest sees the host's directory for daemon logs.
const LogDir = "/run/braid-guest/log"

// Terminals of a guest, by number.
const (
	TTYInput  = 0 // "quit" asks for SIGQUIT; the kernel's messages go there
	TTYStatus = 1 // status lines, guest to host
	TTYStdout = 2 // output of Boot.Once
	TTYStderr = 3

	DefaultTTY = "/dev/tty"
)

// The descriptors of the kernel process that end the terminals: 1 to 3 from
// FirstFD on, then the input of 0.
const (
	FirstFD = 3
	InputFD = 6
)

// Status lines on TTYStatus, each followed by a space and its argument.
const (
	StatusReady = "ready" // the agent answers
	StatusExit  = "exit"  // Boot.Once ended with this exit code
	StatusFail  = "fail"  // the guest is not usable, for this reason
)

// Boot is the content of the boot file.
type Boot struct {
	Hostname string
	// Seed is mixed into the guest's random numbers, so that nothing waits
	// for the kernel to collect entropy.
	Seed []byte
	// Token is what every request to the agent must carry.
	Token string
	// CPUMHz is the clock of the host's processor.
	CPUMHz string
	// Processors is how many the guest uses when it has booted with one; at most
	// 1: those that it has.
	Processors int
	ModuleDir  string // holds one directory per kernel release
	// Hostfs says that shares are mounted with hostfs, the file system of
	// user-mode-linux; otherwise they are parts of the root as it is at first.
	Hostfs  bool
	Modules []string
	Links   []Link
	Hosts   map[string]netip.Addr
	Tmpfs   []string
	Shares  []Share
	Sysctls map[string]string
	// Disk is where what the guest writes is kept; nil for its memory.
	Disk *Disk
	// Once is the one command of a throw-away guest; nil in a guest with an agent.
	Once *Command
}

// Link is a network link of the guest.
type Link struct {
	Device  string // the kernel's name for it, vec0
	Name    string
	Addr    netip.Prefix // zero: none
	Gateway netip.Addr   // zero: none
	MTU     int          // 0: the kernel's default
}

// Disk is a directory of the host, or else a block device of the guest with a
// file system and what its kernel has to load for it.
type Disk struct {
	Dir     string
	Device  string // its name in devtmpfs
	Modules []string
}

// DiskType is the file system of a disk that is a device.
const DiskType = "ext4"

// Share is a directory of the host that the guest may write to.
type Share struct {
	Host, Guest string
}

// Command is a program to run in the guest.
type Command struct {
	Args []string
	Env  []string
	Dir  string
}

// Op is what a request asks the agent for.
type Op string

// Operations of the agent. Every connection carries one request.
const (
	OpRun      Op = "run"      // run Command; Stdin, Stdout, Stderr frames, then Result
	OpWrite    Op = "write"    // write the Stdin frames to Path
	OpStart    Op = "start"    // start the daemon Name
	OpStop     Op = "stop"     // end the daemon Name
	OpSignal   Op = "signal"   // send Signal to the daemon Name
	OpList     Op = "list"     // list the daemons
	OpPowerOff Op = "poweroff" // answer, then power off
)

// Request is the first frame of a connection.
type Request struct {
	Token   string
	Op      Op
	Command Command
	Name    string
	Restart bool
	Signal  int
	Path    string
	Perm    uint32
}

// Result is the last frame of a connection.
type Result struct {
	// Exit is the exit code of OpRun, 128 + n after signal n.
	Exit int
	// Err says why the request was not carried out.
	Err     string
	Daemons []Daemon
}

// Daemon is the state of one daemon.
type Daemon struct {
	Name   string
	PID    int
	Starts int
	Exit   string
}

// Kind is the type of a frame.
type Kind byte

// Kinds of frames. A Stdin frame without data ends the input.
const (
	KindRequest Kind = 'q'
	KindStdin   Kind = 'i'
	KindStdout  Kind = 'o'
	KindStderr  Kind = 'e'
	KindResult  Kind = 'x'
)

// MaxFrame is the largest payload of a frame, in bytes.
const MaxFrame = 1 << 20

// Write writes one frame in a single call of w.Write.
func Write(w io.Writer, k Kind, data []byte) error {
	if len(data) > MaxFrame {
		return fmt.Errorf("frame of %d bytes, at most %d", len(data), MaxFrame)
	}
	b := make([]byte, 5, 5+len(data))
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:], uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

// Read reads one frame. It returns io.EOF at the end of the connection.
func Read(r io.Reader) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes, at most %d", n, MaxFrame)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("read frame: %w", noEOF(err))
	}
	return Kind(head[0]), data, nil
}

// noEOF turns an end in the middle of a frame into what it is.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteJSON writes one frame that holds v.
func WriteJSON(w io.Writer, k Kind, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, k, data)
}

// ReadRequest reads the first frame of a connection.
func ReadRequest(r io.Reader) (Request, error) {
	k, data, err := Read(r)
	if err != nil {
		return Request{}, err
	}
	if k != KindRequest {
		return Request{}, fmt.Errorf("frame %q instead of a request", byte(k))
	}
	var q Request
	if err := json.Unmarshal(data, &q); err != nil {
		return Request{}, fmt.Errorf("request: %w", err)
	}
	return q, nil
}
