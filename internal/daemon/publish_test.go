package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/plan"
)

// prophet is a kernel that tells ahead what it makes, with says in the place of
// the interface name unless that is empty, and makes nothing before the status
// of the pod is written.
type prophet struct {
	*kernel
	written chan struct{} // closed
	says    string
	err     error
}

func (p prophet) Foretell(_ context.Context, s driver.Spec) (*current.Result, error) {
	result, err := kernelResult(s)
	if p.says != "" {
		result.DNS.Domain = p.says
	}
	return result, err
}

func (p prophet) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	select {
	case <-p.written:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if p.err != nil && s.IfName == "net1" {
		return nil, p.err
	}
	return p.kernel.Attach(ctx, s)
}

func newProphecy(t *testing.T, says string, fails error) *node {
	t.Helper()
	n := newNode(t)
	n.kill()
	written := make(chan struct{})
	n.cluster.wrote = sync.OnceFunc(func() { close(written) })
	n.adapt = func(a *attach.Attacher) { a.Drivers["fake"] = prophet{n.kernel, written, says, fails} }
	n.start()
	n.define("vlan", vlanConf)
	n.pod("p", "vlan")
	return n
}

func TestStatusIsWrittenWhileTheNetworksAreMade(t *testing.T) {
	n := newProphecy(t, "", nil)
	n.ok("ADD", "p")
	if w := n.writes(); !slices.Equal(w, []string{"default/p"}) {
		t.Errorf("written %v, want once", w)
	}
	if text := n.statusIs("p"); !strings.Contains(text, `"default/vlan"`) {
		t.Errorf("status %s", text)
	}
}

// TestStatusOfAnEarlierSandboxIsReplacedWhileTheNetworkIsMade: of a pod that
// has the default network alone.
func TestStatusOfAnEarlierSandboxIsReplacedWhileTheNetworkIsMade(t *testing.T) {
	n := newProphecy(t, "", nil)
	n.set(func(c *cluster, _ *kernel) {
		pod := c.pods["default/p"]
		pod.Annotations = map[string]string{"k8s.v1.cni.cncf.io/network-status": `[{"name":"of an earlier sandbox"}]`}
		c.pods["default/p"] = pod
	})
	n.ok("ADD", "p")
	if text := n.statusIs("p"); strings.Contains(text, "earlier") {
		t.Errorf("status %s", text)
	}
}

func TestStatusThatDidNotComeTrueIsReplaced(t *testing.T) {
	n := newProphecy(t, "wrong.example", nil)
	n.ok("ADD", "p")
	if w := n.writes(); len(w) != 2 {
		t.Errorf("written %v, want twice", w)
	}
	if text := n.statusIs("p"); !strings.Contains(text, `"default/vlan"`) || strings.Contains(text, "wrong.example") {
		t.Errorf("status %s", text)
	}
}

// TestStatusOfAnAddThatFailsIsWithdrawn: nobody reads of networks that a pod
// does not have.
func TestStatusOfAnAddThatFailsIsWithdrawn(t *testing.T) {
	for _, before := range []string{"", `[{"name":"of an earlier sandbox"}]`} {
		n := newProphecy(t, "", errors.New("broken as designed"))
		if before != "" {
			n.set(func(c *cluster, _ *kernel) {
				pod := c.pods["default/p"]
				pod.Annotations = map[string]string{plan.NetworksAnnotation: "vlan", "k8s.v1.cni.cncf.io/network-status": before}
				c.pods["default/p"] = pod
			})
		}
		n.refused(n.do("ADD", "p"), 999, "broken as designed")
		if w := n.writes(); len(w) != 2 {
			t.Errorf("written %v, want twice", w)
		}
		if text := n.statusIs("p"); text != before {
			t.Errorf("status %q, want %q", text, before)
		}
		n.nothingLeft()
	}
}

// TestShimThatGoesAwayWhileTheStatusIsWritten: the runtime gives the ADD up, and
// its DEL finds nothing half done.
func TestShimThatGoesAwayWhileTheStatusIsWritten(t *testing.T) {
	n := newNode(t)
	n.define("vlan", vlanConf)
	n.pod("p", "vlan")
	writing := make(chan struct{})
	n.set(func(c *cluster, _ *kernel) { c.writing = writing })
	ctx, killShim := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.call(ctx, n.request("ADD", "p"))
		ended <- err
	}()
	receive(t, "the write", writing)
	killShim()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("shim: %v", err)
	}
	n.ok("DEL", "p")
	n.nothingLeft()
}
