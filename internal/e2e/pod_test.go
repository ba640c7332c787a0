package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// Annotations of pods and networks.
const (
	networksKey = "k8s.v1.cni.cncf.io/networks"
	statusKey   = "k8s.v1.cni.cncf.io/network-status"
	defaultKey  = "v1.multus-cni.io/default-network"
	resourceKey = "k8s.v1.cni.cncf.io/resourceName"
)

// network declares a NetworkAttachmentDefinition of the host's namespace.
// Others may follow under the same name: it is changed then.
func (h *host) network(t *testing.T, name, config string) {
	t.Helper()
	h.networkIn(t, h.namespace, name, config, nil)
}

func (h *host) networkIn(t *testing.T, namespace, name, config string, annotations map[string]string) {
	t.Helper()
	collection := definitions(namespace)
	definition := object{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": object{"name": name, "annotations": annotations}, "spec": object{"config": config},
	}
	err := h.api.create(t.Context(), collection, definition)
	if err == nil {
		err = h.api.patch(t.Context(), collection+"/"+name, definition)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.api.remove(context.Background(), collection+"/"+name); err != nil {
			t.Error(err)
		}
	})
}

// definitions is where the networks of a namespace are at the API server.
func definitions(namespace string) string {
	return "/apis/k8s.cni.cncf.io/v1/namespaces/" + namespace + "/network-attachment-definitions"
}

func (h *host) removeNetwork(t *testing.T, name string) {
	t.Helper()
	if err := h.api.remove(t.Context(), definitions(h.namespace)+"/"+name); err != nil {
		t.Fatal(err)
	}
}

// bridged is the configuration of a network on a bridge with addresses of its
// own, followed by more plugins.
func (h *host) bridged(bridge, subnet string, more ...string) string {
	plugins := append([]string{fmt.Sprintf(`{"type":"bridge","bridge":%q,"ipam":{"type":"host-local","dataDir":%q,"subnet":%q}}`,
		bridge, h.path("addresses"), subnet)}, more...)
	return `{"cniVersion":"1.0.0","plugins":[` + strings.Join(plugins, ",") + `]}`
}

func (h *host) extraNetwork(t *testing.T) {
	h.network(t, "extra", h.bridged("braidextra0", "10.77.0.0/24"))
}

// defaultNetwork writes a default network with more plugins behind its bridge
// into the conf dir.
func (h *host) defaultNetwork(t *testing.T, file string, more ...string) {
	t.Helper()
	if err := os.WriteFile(h.path("conf/"+file), []byte(h.defaultConf("default-net", more...)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// pod is a pod of the API server with no kubelet.
type pod struct {
	*host
	name, uid   string
	annotations map[string]string
	// ns is the namespace that cnitool works on.
	ns *netns.NS
}

// newPod creates a pod whose networks annotation is given, with a namespace for
// cnitool.
func (h *host) newPod(t *testing.T, networks string) *pod {
	t.Helper()
	p := h.createPod(t, testName(t), map[string]string{networksKey: networks})
	ns := "braid-e2e-" + p.name
	var err error
	if p.ns, err = netns.New(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.ns.Close()
		if err := netns.Delete(ns); err != nil {
			t.Error(err)
		}
	})
	return p
}

// testName is the name of the test as a pod can have it.
func testName(t *testing.T) string {
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "-")
	return strings.Trim(name[max(0, len(name)-50):], "-")
}

// createPod creates a pod in the host's namespace. It is deleted with the test.
func (h *host) createPod(t *testing.T, name string, annotations map[string]string) *pod {
	t.Helper()
	p, err := h.makePod(t.Context(), name, annotations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.api.remove(context.Background(), p.object()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (h *host) makePod(ctx context.Context, name string, annotations map[string]string) (*pod, error) {
	p := &pod{host: h, name: name, annotations: annotations}
	collection := "/api/v1/namespaces/" + h.namespace + "/pods"
	if err := h.api.create(ctx, collection, podObject(name, h.node, annotations)); err != nil {
		return nil, err
	}
	var made struct {
		Metadata struct{ UID string }
	}
	if err := h.api.get(ctx, p.object(), &made); err != nil {
		return nil, err
	}
	p.uid = made.Metadata.UID
	return p, nil
}

// object is the pod's path at the API server.
func (p *pod) object() string { return "/api/v1/namespaces/" + p.namespace + "/pods/" + p.name }

// annotate changes an annotation of the pod.
func (p *pod) annotate(t *testing.T, key, value string) {
	t.Helper()
	err := p.api.patch(t.Context(), p.object(), object{"metadata": object{"annotations": object{key: value}}})
	if err != nil {
		t.Fatal(err)
	}
}

// networkStatus is the text of the status annotation, empty without one.
func (p *pod) networkStatus(t *testing.T) string {
	t.Helper()
	var now struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := p.api.get(t.Context(), p.object(), &now); err != nil {
		t.Fatal(err)
	}
	return now.Metadata.Annotations[statusKey]
}

// awaitStatus waits until network-status is as wanted.
func (p *pod) awaitStatus(t *testing.T, wanted func(text string) error) {
	t.Helper()
	err := within(t.Context(), 60*time.Second, "network-status of "+p.name, func() error {
		text := p.networkStatus(t)
		if err := wanted(text); err != nil {
			return fmt.Errorf("%w in %q", err, text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// statusBecomes waits until network-status has all these words.
func (p *pod) statusBecomes(t *testing.T, words ...string) {
	t.Helper()
	p.awaitStatus(t, func(text string) error {
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("no %q", word)
			}
		}
		return nil
	})
}

// statusElement is one element of the status annotation.
type statusElement struct {
	Name      string
	Interface string
	IPs       []string
	MAC       string
	Default   bool
	Gateway   []string
}

func (p *pod) statusElements(t *testing.T) []statusElement {
	t.Helper()
	text := p.networkStatus(t)
	if text == "" {
		return nil
	}
	var elements []statusElement
	if err := json.Unmarshal([]byte(text), &elements); err != nil {
		t.Fatalf("network-status %q: %v", text, err)
	}
	return elements
}

// cnitool runs one verb for the pod, as its runtime would, and returns what
// cnitool printed.
func (p *pod) cnitool(ctx context.Context, verb string) (string, error) {
	cmd := exec.CommandContext(ctx, p.lab.Program("cnitool"), verb, "braid", netns.Path("braid-e2e-"+p.name))
	cmd.Env = append(os.Environ(), "NETCONFPATH="+p.path("conf"), "CNI_PATH="+p.path("bin"),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+p.namespace+";K8S_POD_NAME="+p.name+";K8S_POD_UID="+p.uid)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := p.host.ns.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("cnitool %s: %w: %s", verb, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

func mustRun(t *testing.T, p *pod, verb string) {
	t.Helper()
	if _, err := p.cnitool(t.Context(), verb); err != nil {
		t.Fatal(err)
	}
}

// inside is the pod's world as text.
func (p *pod) inside(t *testing.T) string {
	t.Helper()
	text, err := rtnl.Observe(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// event is one event about a pod or a node.
type event struct {
	Reason, Message string
	Count           int
}

// events are those about an object, in no order.
func (h *host) events(ctx context.Context, namespace, name string) ([]event, error) {
	var list struct {
		Items []event
	}
	err := h.api.get(ctx, "/api/v1/namespaces/"+namespace+"/events?fieldSelector=involvedObject.name="+name, &list)
	return list.Items, err
}

// eventSays waits for an event about the pod with these words.
func (p *pod) eventSays(t *testing.T, want string) {
	t.Helper()
	p.host.eventAbout(t, p.namespace, p.name, want)
}

func (h *host) eventAbout(t *testing.T, namespace, name, want string) {
	t.Helper()
	err := within(t.Context(), 10*time.Second, "an event about "+want, func() error {
		list, err := h.events(t.Context(), namespace, name)
		if err != nil {
			return err
		}
		for _, e := range list {
			if strings.Contains(e.Message, want) {
				return nil
			}
		}
		return fmt.Errorf("events say %+v", list)
	})
	if err != nil {
		t.Error(err)
	}
}

// removeLink deletes a link behind Braid's back.
func removeLink(ns *netns.NS, name string) error {
	h, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	return h.Del(link.Index)
}
