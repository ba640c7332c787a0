// Package exec runs CNI plugins that are programs: every plugin and every
// address delegate of a type that Braid has no driver for.
//
// It speaks the protocol of the CNI specification 1.1, sections 2 and 4, and
// leaves the running itself to a driver.Host.
package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/internal/driver"
)

// Plugin is one program that speaks CNI. It implements driver.Driver.
type Plugin struct {
	// Type is the plugin's name, which is also the name of its file.
	Type string
	// Dirs are searched for it in order. It receives them as CNI_PATH, for the
	// delegates that it runs itself.
	Dirs []string
	// Timeout bounds every run, 0 means that only the context does.
	Timeout time.Duration
}

// NotRunError says that a program was never started: it does not exist, may
// not be executed, or is none. So it has changed nothing. The driver.Host
// returns it.
type NotRunError struct {
	Err error
	// Temporary says that it is not the program's fault: the machine could start
	// none just then, or somebody was writing the file. It may have run before.
	Temporary bool
}

// Error says why.
func (e *NotRunError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *NotRunError) Unwrap() error { return e.Err }

// LostError says that whoever runs programs went away before this one had come
// to its end, or had begun: what the program would have said is not known. The
// driver.Host returns it.
type LostError struct {
	Err error
}

// Error says what was lost.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

var errNoHost = errors.New("nobody is connected who could run it; the runtime's next request can")

// Attach runs the plugin's ADD.
func (p Plugin) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	stdout, err := p.run(ctx, "ADD", s)
	if err != nil {
		return nil, err
	}
	result, err := parseResult(stdout, s.Conf)
	if err != nil {
		return nil, fmt.Errorf("run %s ADD: %w", p.Type, err)
	}
	return result, nil
}

// Detach runs the plugin's DEL. What that prints is nobody's business.
func (p Plugin) Detach(ctx context.Context, s driver.Spec) error {
	_, err := p.run(ctx, "DEL", s)
	return err
}

// Check runs the plugin's CHECK.
func (p Plugin) Check(ctx context.Context, s driver.Spec) error {
	_, err := p.run(ctx, "CHECK", s)
	return err
}

// Status runs the plugin's STATUS (CNI specification 1.1) with the complete
// configuration conf.
func (p Plugin) Status(ctx context.Context, host driver.Host, conf []byte) error {
	_, err := p.run(ctx, "STATUS", driver.Spec{Conf: conf, Host: host})
	return err
}

// Delegate binds an address plugin to the attachment that delegates to it. It
// sees the same environment and configuration as the plugin that delegates.
func (p Plugin) Delegate(s driver.Spec) driver.IPAM { return delegate{p, s} }

type delegate struct {
	plugin Plugin
	spec   driver.Spec
}

// Add reserves addresses. As the specification asks (section 4), a delegate
// that failed is given the chance to clean up.
func (d delegate) Add(ctx context.Context) (*current.Result, error) {
	result, err := d.plugin.Attach(ctx, d.spec)
	var notRun *NotRunError
	if err != nil && !errors.As(err, &notRun) && ctx.Err() == nil {
		err = errors.Join(err, d.plugin.Detach(ctx, d.spec))
	}
	return result, err
}

func (d delegate) Del(ctx context.Context) error   { return d.plugin.Detach(ctx, d.spec) }
func (d delegate) Check(ctx context.Context) error { return d.plugin.Check(ctx, d.spec) }

func (p Plugin) run(ctx context.Context, command string, s driver.Spec) ([]byte, error) {
	if s.Host == nil {
		return nil, fmt.Errorf("run %s %s: %w", p.Type, command, errNoHost)
	}
	if p.Timeout > 0 {
		bounded, cancel := context.WithTimeoutCause(ctx, p.Timeout,
			fmt.Errorf("it did not end within %v and was killed: %w", p.Timeout, context.DeadlineExceeded))
		defer cancel()
		ctx = bounded
	}
	stdout, err := s.Host.Exec(ctx, driver.Program{
		Name: p.Type, Dirs: p.Dirs, Env: p.env(command, s), Stdin: s.Conf,
	})
	if err != nil {
		return nil, p.explain(ctx, command, err)
	}
	return stdout, nil
}

// env is the plugin's environment (CNI specification 1.1, section 2). What the
// verb has no use for is left out, as the specification wants it.
func (p Plugin) env(command string, s driver.Spec) []string {
	env := []string{"CNI_COMMAND=" + command, "CNI_PATH=" + strings.Join(p.Dirs, ":")}
	if s.ContainerID == "" { // STATUS
		return env
	}
	env = append(env, "CNI_CONTAINERID="+s.ContainerID, "CNI_IFNAME="+s.IfName, "CNI_ARGS="+s.Args)
	netns := s.NetNSPath
	if s.NetNS == nil {
		// The path may lead to somebody else's namespace by now.
		netns = ""
	}
	return append(env, "CNI_NETNS="+netns)
}

// explain says which plugin did what, and where it was looked for.
func (p Plugin) explain(ctx context.Context, command string, err error) error {
	var exit *driver.ExitError
	var notRun *NotRunError
	switch {
	case errors.As(err, &exit):
		err = pluginError(exit)
	case errors.As(err, &notRun):
		err = fmt.Errorf("%w (looked in %s); install the plugin or correct the network's type", err, strings.Join(p.Dirs, ", "))
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return fmt.Errorf("run %s %s: %w", p.Type, command, err)
}

// pluginError is what a plugin said before it exited with a code other than 0:
// a CNI error, or something else.
func pluginError(exit *driver.ExitError) error {
	var said types.Error
	if err := json.Unmarshal(exit.Stdout, &said); err == nil && (said.Msg != "" || said.Code != 0) {
		if said.Msg == "" {
			said.Msg = fmt.Sprintf("error code %d without a message", said.Code)
		}
		return withStderr(&said, exit.Stderr)
	}
	if len(bytes.TrimSpace(exit.Stdout)) == 0 {
		return withStderr(fmt.Errorf("it exited with code %d and said nothing on its standard output", exit.Code), exit.Stderr)
	}
	return withStderr(fmt.Errorf("it exited with code %d and printed no CNI error but %s", exit.Code, quote(exit.Stdout)), exit.Stderr)
}

func withStderr(err error, stderr []byte) error {
	if len(bytes.TrimSpace(stderr)) == 0 {
		return err
	}
	return fmt.Errorf("%w (standard error: %s)", err, quote(stderr))
}

// maxQuote bounds what of a plugin's output goes into a message, in bytes. The
// message ends in an event of the pod, which holds 1024.
const maxQuote = 200

// quote shows the beginning of what a plugin printed.
func quote(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) <= maxQuote {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%q… (%d bytes)", b[:maxQuote], len(b))
}

// outline is what has to be known of a result before its version's own type
// reads it.
type outline struct {
	CNIVersion string            `json:"cniVersion"`
	Interfaces []json.RawMessage `json:"interfaces"`
	IPs        []json.RawMessage `json:"ips"`
	Routes     []json.RawMessage `json:"routes"`
}

// parseResult reads the result of an ADD. One that names no version has that
// of the configuration, as the reference runtime library sees it.
func parseResult(stdout, conf []byte) (*current.Result, error) {
	if len(bytes.TrimSpace(stdout)) == 0 {
		return nil, errors.New("it succeeded but printed no result")
	}
	var o *outline
	if err := json.Unmarshal(stdout, &o); err != nil {
		return nil, fmt.Errorf("it succeeded but printed no CNI result: %w: %s", err, quote(stdout))
	}
	if o == nil {
		return nil, errors.New("it succeeded but printed null instead of a result")
	}
	for _, list := range [][]json.RawMessage{o.Interfaces, o.IPs, o.Routes} {
		for _, e := range list {
			if string(e) == "null" { // the library would not survive it
				return nil, fmt.Errorf("its result has an element that is null: %s", quote(stdout))
			}
		}
	}
	result, err := decodeResult(o.CNIVersion, stdout, conf)
	if err != nil {
		return nil, fmt.Errorf("its result: %w: %s", err, quote(stdout))
	}
	if err := sound(result); err != nil {
		return nil, fmt.Errorf("its result: %w: %s", err, quote(stdout))
	}
	return result, nil
}

// sound refuses what nobody who works with the result later can make sense of.
func sound(r *current.Result) error {
	for _, ip := range r.IPs {
		if ip.Address.IP == nil {
			return errors.New("one of its addresses is empty")
		}
		if ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(r.Interfaces)) {
			return fmt.Errorf("address %v belongs to interface %d of %d", &ip.Address, *ip.Interface, len(r.Interfaces))
		}
	}
	for _, route := range r.Routes {
		if route == nil || route.Dst.IP == nil {
			return errors.New("one of its routes has no destination")
		}
	}
	return nil
}

func decodeResult(version string, stdout, conf []byte) (*current.Result, error) {
	if version == "" {
		var err error
		if version, err = create.DecodeVersion(conf); err != nil {
			return nil, err
		}
		if stdout, err = withVersion(stdout, version); err != nil {
			return nil, err
		}
	}
	result, err := create.Create(version, stdout)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(result)
}

// withVersion adds the cniVersion, which the library insists on.
func withVersion(result []byte, version string) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(result, &object); err != nil {
		return nil, err
	}
	object["cniVersion"] = json.RawMessage(fmt.Sprintf("%q", version))
	return json.Marshal(object)
}
