// Command braid-cni is the CNI plugin of Braid: it hands every request of the
// container runtime to braidd on this node, with the container's network
// namespace, and runs programs on the host for braidd while that serves it.
//
// It imports nothing but the standard library and internal/wire, because it is
// started for every verb of every pod.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"braid.dev/braid/internal/wire"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(run(process{args: os.Args[1:], getenv: os.Getenv, environ: os.Environ, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}))
}

// process is what the program gets from the operating system.
type process struct {
	args   []string
	getenv func(string) string
	// environ is the whole environment.
	environ func() []string
	stdin   *os.File
	stdout  *os.File
	stderr  io.Writer
}

// run serves one request and returns the exit code.
func run(p process) int {
	switch command := p.getenv("CNI_COMMAND"); {
	case len(p.args) == 2 && p.args[0] == "stay":
		return stay(p, p.args[1])
	case len(p.args) == 1 && p.args[0] == "namespaces":
		return listNamespaces(p)
	case len(p.args) > 0 || command == "" && isTerminal(p.stdout):
		return about(p)
	case command == "VERSION":
		return printVersions(p)
	default:
		return serve(p)
	}
}

func serve(p process) int {
	r, failure := readRequest(p.getenv, p.stdin)
	if failure != nil {
		return fail(p.stdout, r.conf, failure)
	}
	if isSet(r.conf.Switch) {
		return serveGate(p, r)
	}
	netns, failure := openNetNS(r)
	if failure != nil {
		return fail(p.stdout, r.conf, failure)
	}
	if netns != nil {
		defer netns.Close()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reply, failure := converse(ctx, r, netns)
	if reply.Stay {
		defer leaveHand(p, r.conf.Socket)
	}
	if failure != nil {
		return fail(p.stdout, r.conf, failure)
	}
	if _, err := p.stdout.Write(reply.Stdout); err != nil {
		fmt.Fprintf(p.stderr, "braid-cni: write result: %v\n", err)
		return 1
	}
	return 0
}

// converse has the daemon serve r, or leaves word for it.
func converse(ctx context.Context, r request, netns *os.File) (wire.Reply, *wire.Error) {
	patience := patienceFor(r)
	ctx, cancel := context.WithTimeoutCause(ctx, patience.total, errTimeout)
	defer cancel()
	call := wire.Call{Socket: r.conf.Socket, Request: r.Request, NetNS: netns, Run: runProgram}
	reply, err := ask(ctx, call, patience)
	switch {
	case err == nil:
		return reply, reply.Error
	case r.Command == "DEL" && absent(err):
		return leaveNote(ctx, r.conf.Notes, call, err)
	default:
		return reply, failure(err)
	}
}

// fail prints an error result (CNI specification 1.1, section 5).
func fail(w io.Writer, c conf, e *wire.Error) int {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "    ")
	err := encoder.Encode(struct {
		CNIVersion string `json:"cniVersion"`
		*wire.Error
	}{c.outputVersion(), e})
	if err != nil {
		return 2
	}
	return 1
}

// printVersions answers VERSION here: runtimes ask before the daemon is there.
func printVersions(p process) int {
	err := json.NewEncoder(p.stdout).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{askedVersion(p.stdin), supportedVersions()})
	if err != nil {
		return fail(p.stdout, conf{}, &wire.Error{Code: wire.CodeIO, Msg: "write the supported versions", Details: err.Error()})
	}
	return 0
}

// askedVersion is the cniVersion that VERSION has to repeat. The reference
// library does not read its input for VERSION, so callers exist that leave it
// open: they get the newest version after a moment.
func askedVersion(stdin *os.File) string {
	if isTerminal(stdin) {
		return newestVersion
	}
	asked := make(chan conf, 1)
	go func() {
		var c conf
		// One value, not the whole input: it need not end.
		if err := json.NewDecoder(io.LimitReader(stdin, maxStdin)).Decode(&c); err != nil {
			c = conf{}
		}
		asked <- c
	}()
	select {
	case c := <-asked:
		return c.outputVersion()
	case <-time.After(50 * time.Millisecond):
		return newestVersion
	}
}

const usage = `braid-cni is a CNI plugin: the container runtime starts it with CNI_COMMAND in
its environment and a network configuration on its standard input.

  braid-cni --version   print the version
  braid-cni --help      print this text
  braid-cni stay SOCKET run programs for the braidd that listens there, for as
                        long as it wants: braidd has it started
  braid-cni namespaces  of the paths on standard input, a list in JSON, print
                        those that are network namespaces

It hands each request to braidd on this node. Keys of the configuration:

  type      "braid-cni"
  socket    where braidd listens (default ` + wire.DefaultSocket + `)
  timeout   seconds after which a request is given up (default 120)
  notes     where to leave word of a DEL while braidd is not there
            (default ` + wire.DefaultNotes + `)
  switch    set while the node moves from one network to another: requests go
            to the plugins of these two, not to braidd

CNI versions: 0.3.1, 0.4.0, 1.0.0, 1.1.0
`

// about answers a person.
func about(p process) int {
	switch {
	case len(p.args) == 1 && (p.args[0] == "--version" || p.args[0] == "-v" || p.args[0] == "version"):
		fmt.Fprintf(p.stdout, "braid-cni %s\n", version)
		return 0
	case len(p.args) == 0, len(p.args) == 1 && (p.args[0] == "--help" || p.args[0] == "-h" || p.args[0] == "help"):
		fmt.Fprint(p.stdout, usage)
		return 0
	default:
		fmt.Fprintf(p.stderr, "braid-cni: unknown arguments %q\n\n%s", p.args, usage)
		return 2
	}
}

// isTerminal is true for terminals and other character devices, /dev/null
// among them: no runtime reads results from one.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// openNetNS opens the container's namespace. It is nil when the request needs
// none, and for a DEL or a REACH whose namespace is gone.
func openNetNS(r request) (*os.File, *wire.Error) {
	if r.NetNS == "" || !verbs()[r.Command].netns {
		return nil, nil
	}
	f, err := netNS(r.NetNS, r.sharesNetNS)
	switch {
	case err == nil:
		return f, nil
	case (r.Command == "DEL" || r.Command == "REACH") && errors.Is(err, errNoNetNS):
		return nil, nil
	default:
		return nil, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_NETNS %q is not usable", r.NetNS), Details: err.Error()}
	}
}
