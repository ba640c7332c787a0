// Package wire is the conversation between the shim, which the runtime starts
// for every CNI request, and the daemon that serves it.
//
// One unix stream connection carries one request. The shim opens with a
// Request, the descriptor of the container's network namespace attached to it.
// The daemon may then ask the shim any number of times to run a program on the
// host (Exec, answered by an ExecResult) and ends with a Reply. Either side may
// go away at any time: the other side learns of it at once.
//
// On the socket a message is a length of four bytes, big endian, and that much
// JSON. Neither side sends more than MaxFrame. Both sides talk only to root or
// to their own user.
package wire

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultSocket is where the daemon listens unless told otherwise.
const DefaultSocket = "/run/braid/braid.sock"

// Version is the version of the conversation. It changes only when an older
// peer would misunderstand: unknown keys and unknown messages are skipped.
const Version = 1

// MaxFrame is the largest message in bytes, its length not counted.
const MaxFrame = 16 << 20

// Request is one invocation of the CNI plugin, as the runtime made it (CNI
// specification 1.1, section 2). Two commands are the daemon's own: it has them
// sent to itself, by the hand that it keeps on the host.
type Request struct {
	// Version is filled in by Do.
	Version int `json:"version"`
	// Command is CNI_COMMAND, or STAY or REACH.
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	// NetNS is CNI_NETNS, a path in the mount namespace of the runtime. The
	// daemon works on the descriptor and passes the path on to plugins.
	NetNS  string `json:"netns,omitempty"`
	IfName string `json:"ifName,omitempty"`
	Args   string `json:"args,omitempty"`
	Path   string `json:"path,omitempty"`
	Stdin  []byte `json:"stdin,omitempty"`
	// Timeout is how long the daemon may take. The shim waits somewhat longer,
	// so that a late failure can still be rolled back with its help. 0 means
	// no limit.
	Timeout time.Duration `json:"timeout,omitempty"`
	// NoStay says that whoever asks cannot leave a hand behind, see Reply.Stay:
	// it is no shim on the host.
	NoStay bool `json:"noStay,omitempty"`
}

// Exec asks the shim to run one program where the runtime would have run it:
// with the host's mounts, cgroup and PATH.
type Exec struct {
	// ID pairs an Exec with its ExecResult. It is filled in by Conn.Exec.
	ID uint64 `json:"id"`
	// Name is a bare file name, without a slash.
	Name string `json:"name"`
	// Dirs are searched in order for Name. Empty means the host's PATH.
	Dirs []string `json:"dirs,omitempty"`
	// Args follow the program's name on its command line.
	Args []string `json:"args,omitempty"`
	// Env is the whole environment. Only PATH is added when it is missing.
	Env   []string `json:"env,omitempty"`
	Stdin []byte   `json:"stdin,omitempty"`
	// Timeout is how long the program may run before it is killed together
	// with its process group. 0 means until the context of Conn.Exec ends.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// ExecResult says how one Exec ended. Stdout and Stderr hold what the program
// printed up to then, whatever happened to it.
type ExecResult struct {
	ID     uint64 `json:"id"`
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// ExitCode means something only when Failure is empty.
	ExitCode int `json:"exitCode"`
	// Failure is empty when the program ran to its own end.
	Failure Failure `json:"failure,omitempty"`
	// Detail says more about Failure for a person.
	Detail string `json:"detail,omitempty"`
}

// Failure says why a program did not run to its own end.
type Failure string

const (
	// NotFound means that no directory searched holds the program.
	NotFound Failure = "not found"
	// NotExecutable means that the file may not be executed, or that the
	// interpreter in its first line does not exist.
	NotExecutable Failure = "not executable"
	// BadFormat means that the kernel does not know the file's format, such as
	// that of another architecture.
	BadFormat Failure = "not a program for this machine"
	// TimedOut means that the program was killed at Exec.Timeout.
	TimedOut Failure = "killed at its deadline"
	// Killed means that a signal ended the program that Braid did not send.
	Killed Failure = "killed by a signal"
	// Canceled means that the program was killed because nobody waits for it.
	Canceled Failure = "killed on request"
	// TooMuchOutput means that the program was killed for printing too much.
	TooMuchOutput Failure = "printed too much"
	// NotStarted means any other reason why the program did not start.
	NotStarted Failure = "could not be started"
)

// ExecError is a program that could not be run to its own end. It is matched
// with errors.As; errors.Is(err, context.DeadlineExceeded) holds for TimedOut.
type ExecError struct {
	Name    string
	Failure Failure
	Detail  string
}

// Error names the program and what became of it.
func (e *ExecError) Error() string {
	msg := e.Name + ": " + string(e.Failure)
	if e.Detail != "" {
		msg += ": " + e.Detail
	}
	return msg
}

// Is reports whether target is what e's Failure means to the context package.
func (e *ExecError) Is(target error) bool {
	return e.Failure == TimedOut && target == context.DeadlineExceeded
}

// Reply ends the conversation: either with what the shim prints on its
// standard output, or with an error.
type Reply struct {
	Stdout []byte `json:"stdout,omitempty"`
	Error  *Error `json:"error,omitempty"`
	// Stay has the shim leave a hand behind when it goes: a process that
	// connects with the command STAY and runs programs for the daemon when no
	// request of the runtime is there.
	Stay bool `json:"stay,omitempty"`
}

// Error is an error result of CNI (specification 1.1, section 5). The shim
// adds the cniVersion of the request when it prints it.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error is the message followed by the details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Error codes of the CNI specification and its reference library.
const (
	CodeIncompatibleVersion = 1
	CodeUnknownContainer    = 3
	CodeInvalidEnvironment  = 4
	CodeIO                  = 5
	CodeDecode              = 6
	CodeInvalidConfig       = 7
	CodeInvalidNetNS        = 8
	CodeTryAgainLater       = 11
	CodeNotAvailable        = 50
	CodeLimitedConnectivity = 51
	CodeInternal            = 999
)

// The commands that are not of CNI.
const (
	// CommandStay offers a hand: Path is the directory that it was started
	// from, and the connection lasts for as long as the daemon wants it.
	CommandStay = "STAY"
	// CommandReach brings the namespace of a container, as a request of the
	// runtime would, and serves as the hand for what is done to it. Its Stdin
	// holds a Reach.
	CommandReach = "REACH"
)

// Reach is the key of a REACH's configuration that tells the daemon which of
// its own wishes this is.
type Reach struct {
	Token string `json:"reach"`
}

// Namespace identifies a network namespace, as device and inode of its file.
type Namespace struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

var (
	// ErrUnreachable means that no daemon listens: nothing was asked of it.
	ErrUnreachable = errors.New("no daemon listens")
	// ErrLost means that the peer went away in the middle of a request, which
	// may have been carried out in any part.
	ErrLost = errors.New("connection lost")
	// ErrTooLarge means a message of more than MaxFrame bytes.
	ErrTooLarge = fmt.Errorf("message larger than %d bytes", MaxFrame)
	// ErrPeer means that the process at the other end is neither root nor of
	// our own user.
	ErrPeer = errors.New("peer is not trusted")
	// ErrShutdown is the cause of a Conn's context when the server's grace has
	// passed. The shim asks the next daemon.
	ErrShutdown = errors.New("daemon is shutting down")
	// ErrInUse means that another daemon already serves the socket.
	ErrInUse = errors.New("another daemon serves this socket")
)
