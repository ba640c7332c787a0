package demo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/lab"
)

// TestClusterDevicesOfARealKubelet has a device plugin and a DRA driver register
// with the kubelet, and pods whose networks are made of their devices.
func TestClusterDevicesOfARealKubelet(t *testing.T) {
	s := upWith(t, lab.Config{Name: "devices", NodeKernel: guest.Host, Nodes: 1})
	s.install(t)
	s.devicePlugin(t, "node1", "braid.dev/port", "port.braid.dev", "0000:09:00.1", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3")
	s.apply(t, deviceNetworks)

	s.apply(t, devicePod("two", "fast, fast", `{limits: {braid.dev/port: 2}}`, ""))
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=120s", "pod/two")
	devices := s.devicesOf(t, "two")
	if len(devices) != 2 || devices[0] >= devices[1] || !strings.HasPrefix(devices[0], "0000:01:00.") {
		t.Errorf("two has the devices %q", devices)
	}

	// One device is left, and this pod has two networks.
	s.apply(t, devicePod("short", "fast, fast", `{limits: {braid.dev/port: 1}}`, ""))
	s.eventually(t, "short is told what it lacks", func(ctx context.Context) error {
		said := s.kubectl(t, "get", "events", "--field-selector=involvedObject.name=short", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(said, "more networks than devices (1) of resource") {
			return fmt.Errorf("events: %s", said)
		}
		return nil
	})
	if phase := s.kubectl(t, "get", "pod", "short", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("short is %s", phase)
	}

	// A claim, which takes the scheduler.
	s.apply(t, devicePod("claims", "fast", `{claims: [{name: port}]}`, "resourceClaims: [{name: port, resourceClaimName: port}]"))
	s.kubectl(t, "wait", "--for=condition=Ready", "--timeout=120s", "pod/claims")
	if devices := s.devicesOf(t, "claims"); !slices.Equal(devices, []string{"0000:09:00.1"}) {
		t.Errorf("claims has the devices %q", devices)
	}

	s.kubectl(t, "delete", "pod", "two", "short", "claims", "--wait")
	s.eventually(t, "their files are gone", func(context.Context) error {
		if left := s.on(t, "node1", "ls /var/run/k8s.cni.cncf.io/devinfo/cni"); left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})
}

// devicePlugin runs a device plugin on a node until the kubelet offers its
// devices.
func (s *scenario) devicePlugin(t *testing.T, node, resource, driver, claimed string, devices ...string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "deviceplugin")
	build := exec.Command("go", "build", "-o", program, "./deviceplugin")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := s.lab.StartDaemon(t.Context(), node, guest.Daemon{
		Name: "deviceplugin", Args: append([]string{program, node, resource, driver, claimed}, devices...),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the kubelet offers the devices", func(context.Context) error {
		field := "jsonpath={.status.allocatable." + strings.ReplaceAll(resource, ".", `\.`) + "}"
		if has := s.kubectl(t, "get", "node", node, "-o", field); has != fmt.Sprint(len(devices)) {
			return fmt.Errorf("it offers %q", has)
		}
		return nil
	})
}

func (s *scenario) eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	if err := s.Eventually(t.Context(), time.Minute, what, check); err != nil {
		t.Fatal(err)
	}
}

// devicesOf are the devices behind a pod's networks, as network-status has them.
func (s *scenario) devicesOf(t *testing.T, pod string) []string {
	t.Helper()
	text := s.networkStatus(t, pod)
	var elements []struct {
		Info struct {
			PCI struct {
				Address string `json:"pci-address"`
			}
		} `json:"device-info"`
	}
	if err := json.Unmarshal([]byte(text), &elements); err != nil {
		t.Fatalf("network-status %q: %v", text, err)
	}
	var devices []string
	for _, e := range elements {
		if e.Info.PCI.Address != "" {
			devices = append(devices, e.Info.PCI.Address)
		}
	}
	return devices
}

func devicePod(name, networks, resources, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations: {k8s.v1.cni.cncf.io/networks: %q}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: box, image: %s, command: [tail, -f, /dev/null], resources: %s}
  %s
`, name, networks, lab.TestImage, resources, more)
}

const deviceNetworks = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: fast
  annotations: {k8s.v1.cni.cncf.io/resourceName: braid.dev/port}
spec: {config: '{"cniVersion": "1.0.0", "type": "bridge", "bridge": "braidfast0"}'}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: port}
spec: {selectors: [{cel: {expression: device.driver == "port.braid.dev"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: port-node1}
spec:
  driver: port.braid.dev
  nodeName: node1
  pool: {name: node1, generation: 1, resourceSliceCount: 1}
  devices:
    - name: claimed
      attributes:
        k8s.cni.cncf.io/resourceName: {string: braid.dev/port}
        k8s.cni.cncf.io/deviceID: {string: "0000:09:00.1"}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: port}
spec: {devices: {requests: [{name: port, exactly: {deviceClassName: port}}]}}
`
