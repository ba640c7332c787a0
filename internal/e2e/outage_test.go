package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Of the cases A1 to A22, those about the API server.

// statusBecomes waits until network-status has all these words.
func (p *pod) statusBecomes(t *testing.T, words ...string) {
	t.Helper()
	err := within(t.Context(), 60*time.Second, "network-status of "+p.name, func() error {
		text := p.networkStatus(t)
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("no %q in %q", word, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestA11TheAPIServerIsSlow(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.extraNetwork(t)
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	settle := p.newSandbox(t)
	settle.mustAdd(t)
	settle.mustDel(t)
	h.way.slow(time.Second)
	plain := h.createPod(t, "plain", nil)
	s := p.newSandbox(t)
	result := s.mustAdd(t)
	p.statusBecomes(t, result.IPs[0].Address.IP.String())
	late := plain.newSandbox(t)
	late.mustAdd(t) // the watch tells of it a second late
	s.mustDel(t)
	late.mustDel(t)
	h.nothingIsLeft(t)
}

func TestA12APodThatTheNodeDoesNotKnowYet(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.extraNetwork(t)
	h.network(t, "other", h.bridged("braidother0", "10.73.0.0/24"))
	// attempt begins an ADD that has to wait, lets it, and returns its end.
	type ending struct {
		result *current.Result
		err    error
	}
	attempt := func(s *sandbox) <-chan ending {
		done := make(chan ending, 1)
		go func() {
			result, err := s.add(t.Context())
			done <- ending{result, err}
		}()
		return done
	}
	t.Run("the watch lags", func(t *testing.T) {
		h.way.slow(time.Second)
		defer h.way.slow(0)
		p := h.createPod(t, "lagging", map[string]string{networksKey: "extra"})
		s := p.newSandbox(t)
		delete(s.capabilities, annotationsCapability)
		s.mustAdd(t)
		s.has(t, "net1")
		s.mustDel(t)
	})
	t.Run("recreated with a new UID", func(t *testing.T) {
		old := h.createPod(t, "again", map[string]string{networksKey: "extra"})
		before := old.newSandbox(t)
		before.mustAdd(t) // in the cache
		h.way.slow(time.Second)
		defer h.way.slow(0)
		must(t, h.api.remove(t.Context(), old.object()))
		fresh := h.createPod(t, "again", map[string]string{networksKey: "other@other0"})
		if fresh.uid == old.uid {
			t.Fatal("the pod is the old one")
		}
		s := fresh.newSandbox(t)
		s.mustAdd(t)
		s.has(t, "other0")
		if e := fresh.statusElements(t); len(e) != 2 || e[1].Interface != "other0" {
			t.Errorf("network-status of the new pod: %+v", e)
		}
		before.mustDel(t)
		s.mustDel(t)
		// The old one is no more, and is told apart from one that has no networks.
		stale := old.newSandbox(t)
		if _, err := stale.add(t.Context()); codeOf(err) != 11 {
			t.Errorf("ADD of a pod that is gone: %v", err)
		}
		stale.isEmpty(t)
		stale.mustDel(t)
	})
	t.Run("never created", func(t *testing.T) {
		p := &pod{host: h, name: "never", uid: "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"}
		s := p.newSandbox(t)
		if e := <-attempt(s); codeOf(e.err) != 11 {
			t.Errorf("ADD: %+v", e)
		}
		s.isEmpty(t)
		s.mustDel(t)
	})
	t.Run("static", func(t *testing.T) {
		const hash = "0123456789abcdef0123456789abcdef"
		annotations := map[string]string{
			networksKey: "extra", "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file",
		}
		p := &pod{host: h, name: "static", uid: hash, annotations: annotations}
		s := p.newSandbox(t)
		delete(s.capabilities, annotationsCapability)
		waiting := attempt(s) // before the mirror is made
		if _, err := h.makePod(t.Context(), "static", annotations); err != nil {
			t.Fatal(err)
		}
		if e := <-waiting; e.err != nil {
			t.Fatalf("ADD: %v", e.err)
		}
		s.has(t, "net1")
		p.statusBecomes(t, "net1")
		s.mustDel(t)
		must(t, h.api.remove(t.Context(), p.object()))
	})
	h.nothingIsLeft(t)
}

// annotationsCapability is what containerd passes a pod's annotations as.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

func (s *sandbox) has(t *testing.T, link string) {
	t.Helper()
	if inside := s.inside(t); !strings.Contains(inside, link) {
		t.Errorf("no %s in the pod:\n%s", link, inside)
	}
}

