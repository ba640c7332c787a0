package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// errNoHand means that nobody is there who could do something on the host. It
// goes away when the next shim comes by, see wantHand.
var errNoHand = errors.New("no shim has come by yet that could leave a hand on the host")

const (
	// handIdle is how long a standing hand is kept that nobody uses.
	handIdle = 60 * time.Second
	// handPause is how long a shim has to leave a hand before another is asked.
	handPause = 2 * time.Second
	// reachTimeout is for a hand that is forgotten, not for the work: the daemon
	// ends it when it is through.
	reachTimeout = time.Hour
)

// wantHand has the next shim that visits leave a standing hand behind: a
// process on the host that runs programs for the daemon when no request of the
// runtime is there to do it. The channel is closed once there is one. It may be
// gone again when it is used (errNoHand), and is then wanted anew.
func (d *Daemon) wantHand() <-chan struct{} { return d.hands.want() }

// standingHost is the standing hand, for programs that need no namespace. The
// caller calls done when it is through with it, as a hand that nobody uses is
// sent away. Without a hand it returns errNoHand. When the hand goes away, its
// programs end with wire.ErrLost.
func (d *Daemon) standingHost() (host driver.Host, done func(), err error) {
	h, err := d.hands.use()
	if err != nil {
		return nil, nil, err
	}
	return hand{h.conn}, func() { d.hands.release(h) }, nil
}

// reachSandbox gets at a sandbox when no request of the runtime does. NS is nil
// when the namespace is gone or is another one by now. The caller holds the
// container's turn in d.queue, and calls done before it leaves it; both NS and
// Host are good until then, and programs end with wire.ErrLost should the hand
// go away before. Without a hand it returns errNoHand, and a later call may
// succeed.
func (d *Daemon) reachSandbox(ctx context.Context, sb store.Sandbox) (reach attach.Reach, done func(), err error) {
	h, err := d.hands.use()
	if err != nil {
		return attach.Reach{}, nil, err
	}
	v, err := d.fetch(ctx, h, sb)
	if err != nil {
		d.hands.release(h)
		return attach.Reach{}, nil, fmt.Errorf("reach container %s: %w", sb.ContainerID, err)
	}
	reach, err = v.reach(sb)
	done = sync.OnceFunc(func() {
		if reach.NS != nil {
			reach.NS.Close()
		}
		v.leave()
		d.hands.release(h)
	})
	if err != nil {
		done()
		return attach.Reach{}, nil, fmt.Errorf("reach container %s: %w", sb.ContainerID, err)
	}
	return reach, done, nil
}

// lookAt finds out, with one program on the host, which of the paths are
// namespaces and which. A path where none is, is not in the answer; what could
// not be found out is zero. Without a hand it returns errNoHand.
func (d *Daemon) lookAt(ctx context.Context, paths []string) (map[string]netns.ID, error) {
	h, err := d.hands.use()
	if err != nil {
		return nil, err
	}
	defer d.hands.release(h)
	return look(ctx, hand{h.conn}, d.shim(h), paths)
}

// look is lookAt through a host that can run the shim.
func look(ctx context.Context, host driver.Host, shim driver.Program, paths []string) (map[string]netns.ID, error) {
	stdin, err := json.Marshal(paths)
	if err != nil {
		return nil, err
	}
	shim.Args, shim.Stdin = []string{"namespaces"}, stdin
	out, err := host.Exec(ctx, shim)
	if err != nil {
		return nil, fmt.Errorf("look at namespaces: %w", err)
	}
	var found map[string]wire.Namespace
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("look at namespaces: decode the answer: %w", err)
	}
	ids := make(map[string]netns.ID, len(found))
	for path, ns := range found {
		ids[path] = netns.ID(ns)
	}
	return ids, nil
}

// shim is a run of the shim for the daemon.
func (d *Daemon) shim(h *standingHand) driver.Program {
	// Where the hand was started from; and should the shim have been moved
	// meanwhile, among the other plugins.
	dirs := d.Attacher.BinDirs
	if filepath.IsAbs(h.dir) {
		dirs = append([]string{h.dir}, dirs...)
	}
	return driver.Program{Name: plan.OwnType, Dirs: dirs}
}

// fetch has the hand run a shim for the container, and waits for its visit.
func (d *Daemon) fetch(ctx context.Context, h *standingHand, sb store.Sandbox) (*visit, error) {
	token, arrival := d.hands.expect()
	program, err := d.reachProgram(h, sb, token)
	if err != nil {
		return nil, err
	}
	// The visit does not end with the caller's ctx: it is the caller who says
	// when he is through.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() {
		_, err := hand{h.conn}.Exec(running, program)
		ended <- whyNoVisit(err)
	}()
	select {
	case v := <-arrival:
		v.stop, v.ended = stop, ended
		return v, nil
	case err = <-ended:
		stop()
	case <-ctx.Done():
		err = context.Cause(ctx)
		stop()
		<-ended
	}
	d.hands.forget(token)
	select {
	case v := <-arrival: // too late
		close(v.finished)
		v.closeNS()
	default:
	}
	return nil, err
}

// reachProgram is the run of the shim that pays the visit. With the records'
// identity to compare with, also the host's own namespace may come: some
// container was given it on purpose.
func (d *Daemon) reachProgram(h *standingHand, sb store.Sandbox, token string) (driver.Program, error) {
	p := d.shim(h)
	conf, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
		Socket     string `json:"socket"`
		Timeout    int    `json:"timeout"`
		wire.Reach
	}{"1.0.0", plan.OwnType, plan.OwnType, d.Socket, int(reachTimeout / time.Second), wire.Reach{Token: token}})
	p.Stdin = conf
	p.Env = []string{
		"CNI_COMMAND=" + wire.CommandReach, "CNI_CONTAINERID=" + sb.ContainerID, "CNI_IFNAME=" + sb.IfName,
		"CNI_NETNS=" + sb.NetNS, "CNI_PATH=" + sb.Path,
	}
	if !sb.NSID.IsZero() {
		p.Env = append(p.Env, "CNI_NETNS_OVERRIDE=1")
	}
	return p, err
}

// whyNoVisit says why the shim ended before it was let go. A hand that is lost
// is as good as none: the caller comes again.
func whyNoVisit(err error) error {
	var exit *driver.ExitError
	var said wire.Error
	switch {
	case err == nil:
		return errors.New("the shim ended without a word")
	case errors.Is(err, wire.ErrLost):
		return fmt.Errorf("%w: %w", errNoHand, err)
	case errors.As(err, &exit) && json.Unmarshal(exit.Stdout, &said) == nil && said.Msg != "":
		return &said
	default:
		return err
	}
}

// visit is a shim that the daemon sent for: it holds a container's namespace
// and runs programs until it is let go.
type visit struct {
	conn *wire.Conn
	// netns is the daemon's own descriptor: the connection's is closed with it.
	// It is nil when the namespace is gone.
	netns *os.File
	// finished is closed by whoever sent for it.
	finished chan struct{}
	// ended receives its end, which stop brings about.
	ended <-chan error
	stop  context.CancelFunc
}

// leave lets the shim go and waits until it has.
func (v *visit) leave() {
	close(v.finished)
	late := time.AfterFunc(handPause, v.stop)
	<-v.ended
	late.Stop()
	v.stop()
}

func (v *visit) closeNS() {
	if v.netns != nil {
		v.netns.Close()
	}
}

// reach makes sure that the namespace is the sandbox's.
func (v *visit) reach(sb store.Sandbox) (attach.Reach, error) {
	reach := attach.Reach{Host: hand{v.conn}, Path: sb.Path}
	if v.netns == nil {
		return reach, nil
	}
	ns, err := netns.FromFile(v.netns)
	if err != nil {
		return reach, err
	}
	id, err := ns.ID()
	if err != nil || !sb.NSID.IsZero() && id != sb.NSID {
		ns.Close()
		return reach, err
	}
	reach.NS = ns
	return reach, nil
}

// reached serves the connection of a visit: it belongs to the one who sent for
// it until he is through.
func (d *Daemon) reached(c *wire.Conn) {
	v := &visit{conn: c, finished: make(chan struct{})}
	var wish wire.Reach
	err := json.Unmarshal(c.Request().Stdin, &wish)
	if err == nil && c.NetNS() != nil {
		v.netns, err = duplicate(c.NetNS())
	}
	if err == nil && !d.hands.arrive(wish.Token, v) {
		err = errors.New("nobody has sent for it")
		v.closeNS()
	}
	if err != nil {
		d.Log.Warn("refused to be reached", "container", c.Request().ContainerID, "err", err)
		_ = c.Reply(replyWith(nil, fmt.Errorf("%s: %w", wire.CommandReach, err))) // it finds out
		return
	}
	select {
	case <-v.finished:
		_ = c.Reply(wire.Reply{}) // whoever was served has gone
	case <-c.Context().Done():
	}
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
