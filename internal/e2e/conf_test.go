package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Of the cases A1 to A22, those about the files of the node.

func TestA08TheDefaultNetworkIsTheLastGoodOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := h.createPod(t, "pod", nil)
	stop := h.watchOwnConf(t)
	conf := func(name, subnet string) string {
		return strings.Replace(strings.Replace(h.defaultConf(name), "10.76.0.0/16", subnet, 1), "braidcni0", "braid"+name, 1)
	}
	write := func(file, text string) { must(t, os.WriteFile(h.path("conf/"+file), []byte(text), 0o644)) }
	// gets waits until pods get an address of this network, and then expects it
	// to stay so.
	gets := func(t *testing.T, prefix string) {
		t.Helper()
		err := within(t.Context(), 10*time.Second, "the default network is that of "+prefix, func() error {
			s := p.newSandbox(t)
			result, err := s.add(t.Context())
			if err != nil {
				t.Fatalf("ADD: %v", err)
			}
			s.mustCheck(t)
			s.mustDel(t)
			if got := result.IPs[0].Address.String(); !strings.HasPrefix(got, prefix) {
				return fmt.Errorf("the address is %s", got)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	gets(t, "10.76.")
	write("10-default.conflist", `{"cniVersion":"1.0.0","name":"default-net","plugins":[{"type":"bri`)
	gets(t, "10.76.")
	write("10-default.conflist", "")
	gets(t, "10.76.")
	h.restart(t)
	gets(t, "10.76.")
	must(t, os.Rename(h.path("conf/10-default.conflist"), h.path("conf/10-default.conflist.bak")))
	gets(t, "10.76.")
	must(t, os.Remove(h.path("conf/10-default.conflist.bak")))
	h.restart(t)
	gets(t, "10.76.")
	write("10-default.conflist", conf("changed", "10.91.0.0/16"))
	gets(t, "10.91.")
	write("05-earlier.conflist", conf("earlier", "10.92.0.0/16"))
	gets(t, "10.92.")
	out, err := exec.CommandContext(t.Context(), filepath.Join(h.root, "bin/braid"), "conf", "explain", "--dir", h.path("conf")).CombinedOutput()
	if err != nil {
		t.Logf("braid conf explain: %v", err)
	}
	for _, file := range []string{"00-braid.conflist", "05-earlier.conflist", "10-default.conflist"} {
		if !strings.Contains(string(out), file) {
			t.Errorf("braid conf explain says nothing of %s:\n%s", file, out)
		}
	}
	must(t, os.Remove(h.path("conf/05-earlier.conflist")))
	gets(t, "10.91.")
	if seen := stop(); seen == 0 {
		t.Error("nobody looked at Braid's own configuration")
	}
	h.nothingIsLeft(t)
}

// watchOwnConf looks at Braid's own configuration all the time, and says so if
// it is ever missing or anything but whole. The returned function ends that and
// says how often it looked.
func (h *host) watchOwnConf(t *testing.T) (stop func() int64) {
	t.Helper()
	var done atomic.Bool
	var looked atomic.Int64
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for !done.Load() {
			text, err := os.ReadFile(h.path("conf/00-braid.conflist"))
			if err != nil || !json.Valid(text) {
				t.Errorf("Braid's own configuration is %q, %v", text, err)
				return
			}
			looked.Add(1)
			<-time.After(200 * time.Microsecond) // leaves the processor to others
		}
	})
	return func() int64 {
		done.Store(true)
		watcher.Wait()
		return looked.Load()
	}
}

func TestA09OwnConfigurationIsPutBack(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) { h.flags = []string{"--metrics-address=" + metricsAddress} })
	own := h.path("conf/00-braid.conflist")
	whole, err := os.ReadFile(own)
	must(t, err)
	for _, harm := range []struct {
		name string
		do   func() error
	}{
		{"removed", func() error { return os.Remove(own) }},
		{"emptied", func() error { return os.Truncate(own, 0) }},
		{"rewritten", func() error {
			return os.WriteFile(own, []byte(`{"cniVersion":"1.0.0","name":"x","plugins":[]}`), 0o644)
		}},
		// The last one: what it leaves names a culprit of all that would follow.
		{"renamed", func() error { return os.Rename(own, own+".old") }},
	} {
		t.Run(harm.name, func(t *testing.T) {
			changes, err := fsnotify.NewWatcher()
			must(t, err)
			defer changes.Close()
			must(t, changes.Add(filepath.Dir(own)))
			must(t, harm.do())
			began := time.Now()
			for ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second); ; {
				text, err := os.ReadFile(own)
				if err == nil && string(text) == string(whole) {
					t.Logf("it took %v", time.Since(began).Round(time.Millisecond))
					cancel()
					return
				}
				select {
				case <-changes.Events:
				case <-ctx.Done():
					cancel()
					t.Fatalf("not put back: %v %q", err, text)
				}
			}
		})
	}
	// Cilium's way of renaming is known, and prevented.
	err = os.Rename(own, own+".cilium_bak")
	if err == nil {
		t.Error("the file could be renamed as Cilium does")
	}
	h.eventAbout(t, "default", h.node, "00-braid.conflist was removed or renamed")
	h.eventAbout(t, "default", h.node, "00-braid.conflist was changed")
	h.eventAbout(t, "default", h.node, "Multus renames 00-braid.conflist")
	metrics := h.metrics(t)
	for _, want := range []string{`{reason="removed"} 2`, `{reason="changed"} 2`} {
		if want = "braid_configuration_restored_total" + want; !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics:\n%s", want, metrics)
		}
	}
	p := h.createPod(t, "pod", nil)
	s := p.newSandbox(t)
	s.mustAdd(t)
	s.mustDel(t)
}

// metricsAddress is one of the host's own loopback.
const metricsAddress = "127.0.0.1:9747"

// metrics is what Prometheus is told of the host.
func (h *host) metrics(t *testing.T) string {
	t.Helper()
	dial := func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = h.ns.Do(func() (err error) {
			conn, err = net.Dial(network, address)
			return err
		})
		return conn, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	answer, err := client.Get("http://" + metricsAddress + "/metrics")
	must(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(t, err)
	return string(text)
}

// Upgrades replace the shim and the daemon while pods come and go; crashes
// replace the daemon. None of it fails an ADD, no pod runs without its networks,
// and one that runs all the time notices nothing.
func TestA10RestartsAndUpgradesUnderChurn(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(h *host) { h.prepareCrash(t) })
	h.network(t, "bridged", h.bridged("braidextra0", "10.77.0.0/16", h.recording("")))
	h.network(t, "lan", fmt.Sprintf(`{"cniVersion":"1.0.0","type":"macvlan","master":"braiduplink0","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.75.0.0/16"}}`, h.path("addresses")))
	h.network(t, "theirs", `{"cniVersion":"1.0.0","type":"theirs","bridge":"braidtheirs0","ipam":{"type":"static","addresses":[{"address":"10.74.0.9/24"}]}}`)
	c := &crashTest{t: t, host: h, seed: seedOf(t), seen: map[string]int{}}
	c.quiet.Store(true) // whatever fails is a failure of the test
	var running sync.WaitGroup
	for i := range 6 {
		p := h.createPod(t, fmt.Sprintf("pod-%d", i), map[string]string{networksKey: "bridged,lan,theirs,bridged"})
		r := &runner{crashTest: c, pod: p, rng: c.random(uint64(i))}
		running.Go(func() { r.run(t.Context()) })
	}
	bystander := h.createPod(t, "bystander", map[string]string{networksKey: "bridged,lan,theirs,bridged"}).newSandbox(t)
	bystander.mustAdd(t)
	alive := bystander.inside(t)
	const restarts = 12
	for i := range restarts {
		before := c.adds.Load()
		must(t, within(t.Context(), 60*time.Second, "pods start", func() error {
			if t.Failed() {
				return nil
			}
			if now := c.adds.Load(); now < before+6 {
				return fmt.Errorf("%d of 6", now-before)
			}
			return nil
		}))
		if i%2 == 0 {
			h.mustKill(t)
		} else {
			h.upgrade(t)
		}
		must(t, h.launch())
	}
	c.over.Store(true)
	running.Wait()
	if now := bystander.inside(t); now != alive {
		t.Errorf("the pod that ran all the time has\n%s\nand had\n%s", now, alive)
	}
	bystander.mustCheck(t)
	bystander.mustDel(t)
	t.Logf("%d restarts during %d ADDs and %d DELs, none of which failed", restarts, c.adds.Load(), c.dels.Load())
	h.nothingIsLeft(t)
}

// upgrade replaces the shim and has the daemon end as kubelet does.
func (h *host) upgrade(t *testing.T) {
	t.Helper()
	install := exec.CommandContext(t.Context(), filepath.Join(h.root, "bin/braidd"), "install",
		"--from="+filepath.Join(h.root, "bin/braid-cni"), "--to="+h.path("bin"))
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("braidd install: %v: %s", err, out)
	}
	must(t, h.braidd.Process.Signal(syscall.SIGTERM))
	err := h.braidd.Wait()
	h.braidd = nil
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		t.Errorf("braidd after SIGTERM: %v", err)
	}
}
