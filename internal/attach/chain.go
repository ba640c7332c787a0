package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

// Reach is what a request of the runtime brings along to work with.
type Reach struct {
	// NS is the container's namespace, nil when it no longer exists.
	NS *netns.NS
	// Host runs programs, nil when nobody is connected who could.
	Host driver.Host
	// Path is the CNI_PATH of the request, which may know more directories
	// than the one that ADD used.
	Path string
	// Made, if not nil, is told what Add comes to as soon as all of it is made,
	// while the last of it is being stored. It must not wait. An Add that
	// answers with stored results does not call it, and one that did may still
	// fail.
	Made func([]Attached)
	// Foretold, if not nil, is told what Add will come to before all of it is
	// made, where that can be known. It must not wait. Add may still fail, or
	// come to something else: then Made is told of that. It is called at most
	// once, before Made.
	Foretold func([]Attached)
}

// chain is the plugins of one attachment, ready to be called.
type chain struct {
	attacher *Attacher
	record   store.Record
	reach    Reach
	// pod is lent to drivers, if not nil.
	pod *rtnl.Handle
	// first is the first plugin where it is ready already.
	first *member
}

// member is one plugin of the chain with what it is called with.
type member struct {
	plugin  plan.Plugin
	driver  driver.Driver
	foreign bool
	spec    driver.Spec
}

func (a *Attacher) chain(r store.Record, reach Reach) chain {
	return chain{attacher: a, record: r, reach: reach}
}

func (c chain) plugins() []plan.Plugin { return c.record.Attachment.Config.Plugins }

// member prepares the i-th plugin. prev is what it finds as prevResult; final
// is the attachment's result for a driver, which CNI's older versions do not
// pass on.
func (c chain) member(i int, prev, final *current.Result) (member, error) {
	a, p, sb := c.record.Attachment, c.plugins()[i], c.record.Sandbox
	conf, err := complete(a, p, prev)
	if err != nil {
		return member{}, err
	}
	m := member{plugin: p, spec: driver.Spec{
		ContainerID: sb.ContainerID,
		IfName:      a.IfName,
		NetNS:       c.reach.NS,
		Pod:         c.pod,
		NetNSPath:   sb.NetNS,
		Args:        args(sb.Args, a.CNIArgs),
		Conf:        conf,
		Prev:        final,
		Host:        c.reach.Host,
	}}
	if d, ok := c.attacher.Drivers[p.Type]; ok {
		m.driver = d
		m.spec.IPAM = c.delegate(p, m.spec)
	} else {
		m.driver, m.foreign = c.program(p.Type), true
	}
	return m, nil
}

// delegate is the plugin's address delegate, nil when it names none.
func (c chain) delegate(p plan.Plugin, s driver.Spec) driver.IPAM {
	if p.IPAM == "" {
		return nil
	}
	dialect, ok := c.attacher.IPAM[p.IPAM]
	if limited, is := dialect.(ipam.Limited); is {
		ok = limited.Serves(s.Conf)
	}
	if ok {
		return bound{dialect, ipam.Request{ContainerID: s.ContainerID, IfName: s.IfName, Args: s.Args, Conf: s.Conf}}
	}
	return c.program(p.IPAM).Delegate(s)
}

func (c chain) program(name string) exec.Plugin {
	var dirs []string
	for _, list := range [][]string{
		filepath.SplitList(c.record.Sandbox.Path), filepath.SplitList(c.reach.Path), c.attacher.BinDirs,
	} {
		for _, dir := range list {
			if dir != "" && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return exec.Plugin{Type: name, Dirs: dirs, Timeout: c.attacher.PluginTimeout}
}

// bound is an address dialect bound to one attachment.
type bound struct {
	plugin  ipam.Plugin
	request ipam.Request
}

func (b bound) Add(ctx context.Context) (*current.Result, error) { return b.plugin.Add(ctx, b.request) }
func (b bound) Del(ctx context.Context) error                    { return b.plugin.Del(ctx, b.request) }
func (b bound) Check(ctx context.Context) error                  { return b.plugin.Check(ctx, b.request) }

// Detached says that a dialect knows no links (design, section 1: package ipam
// reaches no kernel).
func (bound) Detached() {}

var _ driver.Detached = bound{}

// attach runs ADD through the chain. left is what is to be done at the end of
// the whole ADD. touched is how many plugins, from the first one on, may have
// left something when it fails.
func (c chain) attach(ctx context.Context) (result *current.Result, left []unfinished, touched int, err error) {
	if err := c.prepareInfo(); err != nil {
		return nil, nil, 0, err
	}
	for i, p := range c.plugins() {
		if err := ctx.Err(); err != nil {
			return nil, nil, i, c.explain("attach", p, context.Cause(ctx))
		}
		m, err := c.next(i, result)
		if err != nil {
			return nil, nil, i, c.explain("attach", p, err)
		}
		next, err := m.attach(ctx)
		if err != nil {
			if m.clean(err) {
				return nil, nil, i, c.explain("attach", p, err)
			}
			return nil, nil, i + 1, c.explain("attach", p, err)
		}
		result = next
		if f, ok := m.driver.(driver.Finisher); ok {
			left = append(left, unfinished{c, m, f, next})
		}
	}
	return result, left, len(c.plugins()), nil
}

// unfinished is what a driver has left of an attachment.
type unfinished struct {
	chain  chain
	member member
	driver driver.Finisher
	result *current.Result
}

// unfinished is what may be left of attachments whose results are stored.
func (a *Attacher) unfinished(records []store.Record, reach Reach) (left []unfinished, err error) {
	for _, r := range records {
		c := a.chain(r, reach)
		for i, p := range c.plugins() {
			f, ok := a.Drivers[p.Type].(driver.Finisher)
			if !ok {
				continue
			}
			m, err := c.later(i)
			if err != nil {
				return nil, c.explain("attach", p, err)
			}
			left = append(left, unfinished{c, m, f, m.spec.Prev})
		}
	}
	return left, nil
}

// finish does what is left, in order.
func finish(ctx context.Context, left []unfinished) error {
	for _, u := range left {
		err := Safely(func() error { return u.driver.Finish(ctx, u.member.spec, u.result) })
		if err != nil {
			return u.chain.explain("attach", u.member.plugin, err)
		}
	}
	return nil
}

// prepare has the first plugin of ADD ready. Where that cannot be, attach will
// say why.
func (c *chain) prepare() {
	if len(c.plugins()) == 0 {
		return
	}
	if m, err := c.member(0, nil, nil); err == nil {
		c.first = &m
	}
}

// next is the i-th plugin of ADD.
func (c chain) next(i int, prev *current.Result) (member, error) {
	if i == 0 && c.first != nil {
		return *c.first, nil
	}
	return c.member(i, prev, prev)
}

func (m member) attach(ctx context.Context) (result *current.Result, err error) {
	err = Safely(func() (err error) {
		result, err = m.driver.Attach(ctx, m.spec)
		return err
	})
	if err == nil && result == nil {
		err = errors.New("it succeeded without a result")
	}
	if err == nil && result.CNIVersion == "" {
		result.CNIVersion = current.ImplementedSpecVersion
	}
	return result, err
}

// clean reports whether the plugin whose ADD ended with err has left nothing:
// a driver promises that, unless it panicked; a program never ran.
func (m member) clean(err error) bool {
	var crash *PanicError
	var notRun *exec.NotRunError
	if m.foreign {
		return errors.As(err, &notRun)
	}
	return !errors.As(err, &crash)
}

// detach runs DEL through the first n plugins of the chain, last one first.
// Everything is attempted.
func (c chain) detach(ctx context.Context, n int) error {
	var errs []error
	for i := min(n, len(c.plugins())) - 1; i >= 0; i-- {
		if err := c.detachOne(ctx, i); err != nil {
			errs = append(errs, c.explain("detach", c.plugins()[i], err))
		}
	}
	if len(errs) == 0 {
		return c.removeInfo()
	}
	return errors.Join(errs...)
}

func (c chain) detachOne(ctx context.Context, i int) error {
	m, err := c.later(i)
	if err == nil {
		err = Safely(func() error { return m.driver.Detach(ctx, m.spec) })
	}
	if err == nil || c.record.Certain() || !m.foreign && !c.record.Guessed {
		return err
	}
	var notRun *exec.NotRunError
	var lost *exec.LostError
	_, asksHost := c.attacher.Needs([]store.Record{c.record})
	switch {
	case errors.As(err, &notRun) && notRun.Temporary, errors.As(err, &lost):
		return err
	case notRun != nil && !c.record.Guessed:
		// ADD came to no result, and the program that cannot be run now most
		// likely is why. If it runs later, it had nothing to remove.
		return nil
	case ctx.Err() == nil && (c.reach.Host != nil || !asksHost):
		return &stubbornError{err}
	}
	return err
}

// stubbornError is a program that ran, and failed to DEL what its ADD had not
// finished; or any plugin that fails to DEL what was only guessed.
type stubbornError struct{ err error }

func (e *stubbornError) Error() string { return e.err.Error() }
func (e *stubbornError) Unwrap() error { return e.err }

// onlyStubborn reports whether err, of detach, consists of nothing else.
func onlyStubborn(err error) bool {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range all.Unwrap() {
			var stubborn *stubbornError
			if !errors.As(e, &stubborn) {
				return false
			}
		}
		return true
	}
	return false
}

// check runs CHECK through the chain and stops at the first difference.
func (c chain) check(ctx context.Context) error {
	if c.record.Attachment.Config.DisableCheck || !atLeast(c.record.Attachment.Config.CNIVersion, "0.4.0") {
		return nil
	}
	if !c.record.Complete() {
		return fmt.Errorf("check %s: its ADD never finished", c.record.Attachment.IfName)
	}
	for i, p := range c.plugins() {
		m, err := c.later(i)
		if err == nil {
			err = Safely(func() error { return m.driver.Check(ctx, m.spec) })
		}
		if err != nil {
			return c.explain("check", p, err)
		}
	}
	return nil
}

// later prepares the i-th plugin for DEL or CHECK. Each gets a result of its
// own to work with.
func (c chain) later(i int) (member, error) {
	final, err := decodeResult(c.record.Result)
	if err != nil {
		return member{}, err
	}
	return c.member(i, prevForLater(c.record.Attachment, final), final)
}

func (c chain) explain(verb string, p plan.Plugin, err error) error {
	a := c.record.Attachment
	return fmt.Errorf("%s %s (%s, plugin %s): %w", verb, a.IfName, a.Network, p.Type, err)
}

// PanicError is a panic of a driver, caught so that what it had made can be
// taken down.
type PanicError struct {
	Value any
	Stack []byte
}

// Error says what the driver panicked with. The stack is for the log.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Safely runs fn and turns a panic in it into a *PanicError.
func Safely(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	return fn()
}

// sameAttachment compares what was attached with what is asked for. The
// reasons given for it are no part of it, nor are the words of the pod that
// led to it.
func sameAttachment(a, b plan.Attachment) bool {
	a.Reasons, b.Reasons = nil, nil
	a.Asked, b.Asked = nil, nil
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}
