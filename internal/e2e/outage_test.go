package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Of the cases A1 to A22, those about the API server.

func TestA11TheAPIServerIsAway(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(t *testing.T, h *host){
		"refuses":    func(t *testing.T, h *host) { must(t, h.way.set(refused)) },
		"black hole": func(t *testing.T, h *host) { must(t, h.way.set(blackholed)) },
		"refuses a new daemon": func(t *testing.T, h *host) {
			must(t, h.way.set(refused))
			h.restart(t)
		},
		"black hole for a new daemon": func(t *testing.T, h *host) {
			must(t, h.way.set(blackholed))
			h.restart(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.extraNetwork(t)
			known := h.createPod(t, "known", map[string]string{networksKey: "extra"})
			first := known.newSandbox(t)
			first.mustAdd(t) // the node knows pod and network
			h.awaitRemembered(t)
			cut(t, h)
			second := known.newSandbox(t)
			result := second.mustAdd(t)
			second.mustCheck(t)
			if inside := second.inside(t); !strings.Contains(inside, "net1") {
				t.Errorf("no net1 in the pod:\n%s", inside)
			}
			first.mustDel(t)
			// A pod that is new to the node comes with its annotations.
			young := h.createPod(t, "young", map[string]string{networksKey: "extra@young0"})
			third := young.newSandbox(t)
			third.mustAdd(t)
			if inside := third.inside(t); !strings.Contains(inside, "young0") {
				t.Errorf("no young0 in the pod:\n%s", inside)
			}
			must(t, h.way.set(open))
			known.statusBecomes(t, result.IPs[0].Address.IP.String(), "net1")
			young.statusBecomes(t, "young0")
			second.mustDel(t)
			third.mustDel(t)
			h.nothingIsLeft(t)
		})
	}
}

// awaitRemembered waits until braidd has written down what it needs to start
// while the API server is away.
func (h *host) awaitRemembered(t *testing.T) {
	t.Helper()
	must(t, within(t.Context(), 20*time.Second, "networks are on disk", func() error {
		text, err := os.ReadFile(h.path("state/definitions"))
		if err == nil && !strings.Contains(string(text), `"`+h.namespace+`"`) {
			err = fmt.Errorf("only %q", text)
		}
		return err
	}))
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

// TestClusterAddDoesNotWaitForTheNetworkStatus has it written after the ADD, by this
// daemon or, when that is killed, by the next.
func TestClusterAddDoesNotWaitForTheNetworkStatus(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.extraNetwork(t)
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	settle := p.newSandbox(t)
	settle.mustAdd(t)
	p.statusBecomes(t, "net1")
	settle.mustDel(t)
	for name, killed := range map[string]bool{"written at once": false, "written by the next daemon": true} {
		t.Run(name, func(t *testing.T) {
			before := p.networkStatus(t)
			h.way.slow(6 * time.Second)
			s := p.newSandbox(t)
			result := s.mustAdd(t)
			if p.networkStatus(t) != before {
				t.Error("it was waited for")
			}
			if killed {
				h.mustKill(t)
			}
			h.way.slow(0)
			if killed {
				h.mustStart(t)
			}
			p.statusBecomes(t, result.IPs[0].Address.IP.String(), "net1")
			s.mustDel(t)
		})
	}
	h.nothingIsLeft(t)
}

// TestClusterAddThatIsToWaitForTheNetworkStatus ends when it can be read.
func TestClusterAddThatIsToWaitForTheNetworkStatus(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) {
		must(t, os.WriteFile(h.path("braidd.yaml"), []byte("waitForNetworkStatus: true\n"), 0o644))
	})
	h.extraNetwork(t)
	p := h.createPod(t, "pod", map[string]string{networksKey: "extra"})
	for range 2 {
		s := p.newSandbox(t)
		result := s.mustAdd(t)
		if text := p.networkStatus(t); !strings.Contains(text, result.IPs[0].Address.IP.String()) {
			t.Errorf("not waited for: %q", text)
		}
		s.mustDel(t)
	}
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
		fresh.awaitStatus(t, func(string) error {
			if e := fresh.statusElements(t); len(e) != 2 || e[1].Interface != "other0" {
				return fmt.Errorf("not other0 behind the default network: %+v", e)
			}
			return nil
		})
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

// The API server is stopped while pods come and go. BRAID_OUTAGE says for how
// long; the full test is 5m.
func TestClusterPodsComeAndGoWhileTheAPIServerIsStopped(t *testing.T) {
	h := newHost(t) // not in parallel: everybody loses the API server
	h.extraNetwork(t)
	outage := 20 * time.Second
	if text := os.Getenv("BRAID_OUTAGE"); text != "" {
		var err error
		outage, err = time.ParseDuration(text)
		must(t, err)
	}
	const workers = 4
	c := &churn{host: h}
	for i := range workers {
		p := h.createPod(t, fmt.Sprintf("pod-%d", i), map[string]string{networksKey: "extra"})
		s := p.newSandbox(t)
		s.mustAdd(t)
		c.workers = append(c.workers, &churner{pod: p, running: s})
	}
	h.awaitRemembered(t)
	must(t, h.lab.StopAPI(t.Context()))
	err := h.api.get(t.Context(), "/readyz", nil)
	if err == nil || isCode(err, http.StatusOK) {
		t.Error("the API server still answers")
	}
	until := time.Now().Add(outage)
	var running sync.WaitGroup
	for _, w := range c.workers {
		running.Go(func() { w.churn(t, until) })
	}
	for i := range 3 { // and the daemon crashes now and then
		<-time.After(outage / 4)
		if i == 1 {
			h.restartWithoutAPI(t)
		}
	}
	running.Wait()
	began := time.Now()
	must(t, h.lab.StartAPI(context.WithoutCancel(t.Context())))
	adds := 0
	for _, w := range c.workers {
		w.pod.statusBecomes(t, w.lastIP, "net1")
		adds += w.adds
	}
	t.Logf("%v without an API server: %d ADDs and as many DELs; the status was true %v after it was back",
		outage, adds, time.Since(began).Round(10*time.Millisecond))
	for _, w := range c.workers {
		w.running.mustDel(t)
	}
	h.nothingIsLeft(t)
}

// restartWithoutAPI crashes braidd and starts it. STATUS says that it is ready
// as soon as it knows what it knew before.
func (h *host) restartWithoutAPI(t *testing.T) {
	t.Helper()
	h.mustKill(t)
	h.mustStart(t)
}

type churn struct {
	host    *host
	workers []*churner
}

// churner is a pod whose sandbox is replaced again and again.
type churner struct {
	pod     *pod
	running *sandbox
	lastIP  string
	adds    int
}

func (w *churner) churn(t *testing.T, until time.Time) {
	for time.Now().Before(until) && !t.Failed() {
		s, err := w.pod.openSandbox()
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() {
			if err := s.remove(); err != nil {
				t.Error(err)
			}
		})
		result, err := s.add(t.Context())
		if err != nil {
			t.Errorf("ADD: %v", err)
			return
		}
		if err := w.running.del(t.Context()); err != nil {
			t.Errorf("DEL: %v", err)
		}
		if err := w.running.remove(); err != nil {
			t.Error(err)
		}
		w.running, w.lastIP = s, result.IPs[slices.IndexFunc(result.IPs, func(ip *current.IPConfig) bool { return ip.Address.IP.To4() != nil })].Address.IP.String()
		w.adds++
	}
}
