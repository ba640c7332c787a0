package status

// The tests TestSpecNN hold the numbered requirements of the NPWG multi-network
// specification 1.3 that are decided here; docs/multus.md lists them all.

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
)

// inPod is a result with the interface net1 in the pod, and more keys.
func inPod(more string) string {
	return `{"interfaces":[{"name":"br0","mac":"0a:00:00:00:00:01"},{"name":"net1","mac":"02:00:00:00:00:01","sandbox":"/x"}]` + more + `}`
}

// keys of the annotation's only element.
func keys(t *testing.T, o Outcome) map[string]json.RawMessage {
	t.Helper()
	text, err := Text([]Outcome{o})
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	return list[0]
}

func TestSpec23StatusIsAJSONListInItsAnnotation(t *testing.T) {
	if Annotation != "k8s.v1.cni.cncf.io/network-status" {
		t.Error(Annotation)
	}
	text, err := Text([]Outcome{outcome(t, "pods", "eth0", true, eth0), outcome(t, "d/n", "net1", false, net1)})
	var list []json.RawMessage
	if err != nil || json.Unmarshal([]byte(text), &list) != nil || len(list) != 2 {
		t.Errorf("%v: %s", err, text)
	}
}

func TestSpec24FirstInterfaceInThePodOrAMinimalEntry(t *testing.T) {
	two := `{"interfaces":[{"name":"br0"},{"name":"net1","sandbox":"/x"},{"name":"net1b","sandbox":"/x"}]}`
	if e := Entries([]Outcome{outcome(t, "d/n", "net1", false, two)}); e[0].Interface != "net1" {
		t.Errorf("first is %+v", e[0])
	}
	for _, result := range []string{"", "{}", `{"interfaces":[{"name":"br0"}]}`} {
		if diff := cmp.Diff([]Entry{{Name: "d/n"}}, Entries([]Outcome{outcome(t, "d/n", "net1", false, result)})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", result, diff)
		}
	}
}

func TestSpec25OneEntryIsTheDefaultAndAllSayWhether(t *testing.T) {
	outcomes := []Outcome{outcome(t, "pods", "eth0", true, eth0), outcome(t, "d/n", "net1", false, net1), outcome(t, "d/l2", "net2", false, "")}
	var have []bool
	for _, e := range Entries(outcomes) {
		have = append(have, e.Default)
	}
	if !slices.Equal(have, []bool{true, false, false}) {
		t.Errorf("default: %v", have)
	}
	for i, want := range []string{"true", "false", "false"} {
		if have := string(keys(t, outcomes[i])["default"]); have != want {
			t.Errorf("entry %d: default %q, want %s", i, have, want)
		}
	}
}

func TestSpec26NameHasTheNamespaceOfTheDefinition(t *testing.T) {
	for _, network := range []string{"default/vlan", "cbr0"} { // the latter is from the conf dir
		if have := string(keys(t, outcome(t, network, "net1", false, net1))["name"]); have != fmt.Sprintf("%q", network) {
			t.Errorf("name %s, want %s", have, network)
		}
	}
}

func TestSpec27InterfaceAndMACAreThoseInThePod(t *testing.T) {
	e := keys(t, outcome(t, "d/n", "net1", false, inPod("")))
	if string(e["interface"]) != `"net1"` || string(e["mac"]) != `"02:00:00:00:00:01"` {
		t.Errorf("%s", e)
	}
	e = keys(t, outcome(t, "d/n", "net1", false, `{"interfaces":[{"name":"br0","mac":"0a:00:00:00:00:01"}]}`))
	if _, mac := e["mac"]; mac || e["interface"] != nil {
		t.Errorf("without an interface in the pod: %s", e)
	}
}

func TestSpec28IPsAreThoseOfTheInterface(t *testing.T) {
	for ips, want := range map[string][]string{
		`[{"interface":1,"address":"10.0.0.2/24"},{"interface":0,"address":"10.0.0.1/24"}]`: {"10.0.0.2"},
		`[{"address":"10.0.0.2/24"},{"interface":-1,"address":"2001:db8::2/64"}]`:           {"10.0.0.2", "2001:db8::2"},
		`[]`: nil,
	} {
		e := Entries([]Outcome{outcome(t, "d/n", "net1", false, inPod(`,"ips":`+ips))})
		if !slices.Equal(e[0].IPs, want) {
			t.Errorf("%s: ips %v, want %v", ips, e[0].IPs, want)
		}
	}
}

func TestSpec29DefaultRouteIsToldWhenAskedFor(t *testing.T) {
	o := outcome(t, "d/n", "net1", false, inPod(`,"ips":[{"interface":1,"address":"10.0.0.2/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]`))
	if e := keys(t, o); e["default-route"] != nil {
		t.Errorf("not asked for: %s", e)
	}
	o.Attachment.Claim = &plan.RouteClaim{Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if e := Entries([]Outcome{o}); !slices.Equal(e[0].DefaultRoute, []string{"10.0.0.1"}) {
		t.Errorf("asked for: %+v", e)
	}
}

func TestSpec30DNSIsThatOfTheResult(t *testing.T) {
	e := Entries([]Outcome{outcome(t, "d/n", "net1", false, inPod(`,"dns":{"nameservers":["10.0.0.53"],"domain":"a.test","search":["b.test"]}`))})
	if diff := cmp.Diff(DNS{Nameservers: []string{"10.0.0.53"}, Domain: "a.test", Search: []string{"b.test"}}, e[0].DNS); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSpec31DeviceInfoIsToldAsItWasWritten(t *testing.T) {
	for _, info := range []string{
		`{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:03:02.0","rdma-device":"mlx5_3"}}`,
		`{"type":"vdpa","version":"1.1.0","vdpa":{"parent-device":"vdpa1","driver":"vhost","path":"/dev/vhost-vdpa-1"}}`,
		`{"type":"vhost-user","version":"1.1.0","vhost-user":{"mode":"server","path":"/var/run/vhost.sock"}}`,
		`{"type":"memif","version":"1.1.0","memif":{"role":"master","path":"/run/memif.sock","mode":"ethernet"}}`,
	} {
		o := outcome(t, "d/n", "net1", false, net1)
		o.DeviceInfo = json.RawMessage(info)
		var have, want any
		if err := json.Unmarshal(keys(t, o)["device-info"], &have); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(info), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if e := keys(t, outcome(t, "d/n", "net1", false, net1)); e["device-info"] != nil {
		t.Errorf("without a device: %s", e)
	}
}

// TestSpec31DeviceInfoIsToldOnce: of an attachment with several interfaces, the
// device is behind the first.
func TestSpec31DeviceInfoIsToldOnce(t *testing.T) {
	o := outcome(t, "d/n", "net1", false, `{"interfaces":[{"name":"net1","sandbox":"/x"},{"name":"net1b","sandbox":"/x"}]}`)
	o.DeviceInfo = json.RawMessage(`{"type":"pci"}`)
	if e := Entries([]Outcome{o}); e[0].DeviceInfo == nil || e[1].DeviceInfo != nil {
		t.Errorf("%+v", e)
	}
}

func TestSpec32StatusFollowsTheAttachments(t *testing.T) {
	before := []Outcome{outcome(t, "pods", "eth0", true, eth0), outcome(t, "d/n", "net1", false, net1)}
	plugged := append(slices.Clone(before), outcome(t, "d/n", "net2", false, ""))
	for _, list := range [][]Outcome{before, plugged, before[:1]} {
		if have := Entries(list); len(have) != len(list) {
			t.Errorf("%d attachments have the entries %+v", len(list), have)
		}
	}
}
