package devices

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"braid.dev/braid/internal/devices/kubelettest"
)

// published are the ResourceSlices of a cluster: by driver, pool and device.
type published struct {
	devices map[string]map[string]string
	asked   []string
	err     error
}

func (p *published) Attributes(_ context.Context, driver, pool string, devices []string) (map[string]map[string]string, error) {
	p.asked = append(p.asked, fmt.Sprint(driver, " ", pool, " ", devices))
	if p.err != nil {
		return nil, p.err
	}
	found := map[string]map[string]string{}
	for _, d := range devices {
		if attributes, ok := p.devices[driver+"/"+pool+"/"+d]; ok {
			found[d] = attributes
		}
	}
	return found, nil
}

func offer(resource, id string) map[string]string {
	return map[string]string{ResourceNameAttribute: resource, DeviceIDAttribute: id, "driver.example/numa": "0"}
}

func TestClaimedDevicesAreThoseThatTheirDriverPublishes(t *testing.T) {
	k := kubelettest.New(t).Start()
	k.Containers("default/p",
		kubelettest.Claim("nets", [3]string{"sriov", "node1", "vf3"}, [3]string{"sriov", "node1", "vf1"}, [3]string{"sriov", "node1", "vf2"}),
		// Shared with the container before.
		kubelettest.Claim("nets", [3]string{"sriov", "node1", "vf3"}, [3]string{"sriov", "node1", "vf1"}, [3]string{"sriov", "node1", "vf2"}),
		kubelettest.Claim("gpu", [3]string{"gpu", "node1", "gpu0"}),
	)
	p := &published{devices: map[string]map[string]string{
		"sriov/node1/vf1": offer("intel.com/vf", "0000:01:00.9"),
		"sriov/node1/vf2": offer("intel.com/vf", "0000:01:00.2"),
		"sriov/node1/vf3": offer("intel.com/other", "0000:02:00.1"),
		"gpu/node1/gpu0":  {"gpu/model": "x"},
	}}
	c := client(t, k, p)
	if got := ids(t, c, "p", "intel.com/vf"); got != "0000:01:00.2 0000:01:00.9" {
		t.Errorf("devices %q", got)
	}
	if got := ids(t, c, "p", "intel.com/other"); got != "0000:02:00.1" {
		t.Errorf("devices of the other resource %q", got)
	}
	if want := []string{"gpu node1 [gpu0]", "sriov node1 [vf1 vf2 vf3]"}; !slices.Equal(p.asked, want) {
		t.Errorf("asked %q, want %q", p.asked, want)
	}
}

// With the API server away, a pod with a device of a device plugin starts, also
// when it has claimed a GPU.
func TestDevicesOfAPluginDoNotDependOnClaims(t *testing.T) {
	k := kubelettest.New(t).Start()
	k.Containers("default/p", kubelettest.Container("intel.com/vf", "0000:01:00.2"), kubelettest.Claim("gpu", [3]string{"gpu", "node1", "gpu0"}))
	p := &published{err: errors.New("the API server is away")}
	c := client(t, k, p)
	if got := ids(t, c, "p", "intel.com/vf"); got != "0000:01:00.2" || len(p.asked) > 0 {
		t.Errorf("devices %q, asked %v", got, p.asked)
	}
	_, err := c.Of(t.Context(), pod("p"), "claimed.example/vf")
	if err == nil || !strings.Contains(err.Error(), "driver gpu publishes of its pool node1: the API server is away") {
		t.Errorf("error %v", err)
	}
	// What failed is tried again.
	p.err = nil
	p.devices = map[string]map[string]string{"gpu/node1/gpu0": offer("claimed.example/vf", "eth7")}
	if got := ids(t, c, "p", "claimed.example/vf"); got != "eth7" {
		t.Errorf("devices %q", got)
	}
}

func TestClaimedDeviceWithHalfAnOfferIsNoNetworksDevice(t *testing.T) {
	k := kubelettest.New(t).Start()
	k.Containers("default/p", kubelettest.Claim("c", [3]string{"d", "n", "1"}, [3]string{"d", "n", "2"}, [3]string{"d", "n", "3"}))
	p := &published{devices: map[string]map[string]string{
		"d/n/1": {ResourceNameAttribute: "a/b"},
		"d/n/2": {DeviceIDAttribute: "eth7"},
	}}
	c := client(t, k, p)
	for _, resource := range []string{"a/b", ""} {
		if got := ids(t, c, "p", resource); got != "" {
			t.Errorf("resource %q: devices %q", resource, got)
		}
	}
	if len(p.asked) != 1 {
		t.Errorf("asked %v: that there are none is an answer, too", p.asked)
	}
}
