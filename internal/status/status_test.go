package status

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
)

// outcome is an attachment whose chain returned result, nothing when empty.
func outcome(t testing.TB, network, ifName string, isDefault bool, result string) Outcome {
	t.Helper()
	o := Outcome{Attachment: plan.Attachment{Network: network, IfName: ifName, Default: isDefault}}
	if result != "" {
		o.Result = new(current.Result)
		if err := json.Unmarshal([]byte(result), o.Result); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

const (
	// eth0 is what bridge and host-local return for a default network.
	eth0 = `{"cniVersion":"1.1.0",
	  "interfaces":[{"name":"cni0","mac":"0a:00:00:00:00:01"},
	                {"name":"veth6bcdbf48","mac":"0a:00:00:00:00:02"},
	                {"name":"eth0","mac":"8e:c7:8f:53:de:0b","mtu":1450,"sandbox":"/var/run/netns/x"}],
	  "ips":[{"interface":2,"address":"10.9.3.8/24","gateway":"10.9.3.1"}],
	  "routes":[{"dst":"0.0.0.0/0"}]}`
	// net1 is what bridge and static return for a VLAN.
	net1 = `{"cniVersion":"1.1.0",
	  "interfaces":[{"name":"vlanbr0"},{"name":"veth4bedd573"},
	                {"name":"net1","mac":"a2:a1:03:d8:90:bb","mtu":1500,"sandbox":"/var/run/netns/x"}],
	  "ips":[{"interface":2,"address":"10.20.1.11/24"}]}`
)

// TestAnnotationOfAPodWithAVLAN is the contract as other programs parse it, to
// the byte.
func TestAnnotationOfAPodWithAVLAN(t *testing.T) {
	got, err := Text([]Outcome{
		outcome(t, "flannel", "eth0", true, eth0),
		outcome(t, "default/vlan-2001", "net1", false, net1),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `[
    {
        "name": "flannel",
        "interface": "eth0",
        "ips": [
            "10.9.3.8"
        ],
        "mac": "8e:c7:8f:53:de:0b",
        "mtu": 1450,
        "default": true,
        "dns": {},
        "gateway": [
            "10.9.3.1"
        ]
    },
    {
        "name": "default/vlan-2001",
        "interface": "net1",
        "ips": [
            "10.20.1.11"
        ],
        "mac": "a2:a1:03:d8:90:bb",
        "mtu": 1500,
        "default": false,
        "dns": {}
    }
]`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("annotation (-want +got):\n%s", diff)
	}
}

func TestEntries(t *testing.T) {
	for _, tc := range []struct {
		name      string
		isDefault bool
		result    string
		want      []Entry
	}{
		{
			name:   "L2 only: no address",
			result: `{"interfaces":[{"name":"net1","mac":"02:00:00:00:00:01","sandbox":"x"}]}`,
			want:   []Entry{{Interface: "net1", MAC: "02:00:00:00:00:01"}},
		},
		{
			name: "no result at all: a minimal entry",
			want: []Entry{{}},
		},
		{
			name:      "empty result of a default network: a minimal entry, marked default",
			isDefault: true,
			result:    `{}`,
			want:      []Entry{{Default: true}},
		},
		{
			name:      "only an interface of the host, address without index (Calico)",
			isDefault: true,
			result: `{"interfaces":[{"name":"cali1234"}],
			          "ips":[{"address":"192.168.7.2/32"},{"interface":-1,"address":"fd00::2/128"}]}`,
			want: []Entry{{IPs: []string{"192.168.7.2", "fd00::2"}, Default: true}},
		},
		{
			name: "addresses without an index belong to the first interface in the pod",
			result: `{"interfaces":[{"name":"br0"},{"name":"net1","sandbox":"x"},{"name":"net1b","sandbox":"x"}],
			          "ips":[{"address":"10.0.0.2/24"},{"interface":2,"address":"10.0.1.2/24"}]}`,
			want: []Entry{{Interface: "net1", IPs: []string{"10.0.0.2"}}, {Interface: "net1b", IPs: []string{"10.0.1.2"}}},
		},
		{
			name: "the host's addresses are not the pod's",
			result: `{"interfaces":[{"name":"br0"},{"name":"net1","sandbox":"x"}],
			          "ips":[{"interface":0,"address":"10.0.0.1/24"},{"interface":1,"address":"10.0.0.2/24"}]}`,
			want: []Entry{{Interface: "net1", IPs: []string{"10.0.0.2"}}},
		},
		{
			name:   "an index beyond the list names no interface",
			result: `{"interfaces":[{"name":"net1","sandbox":"x"}],"ips":[{"interface":7,"address":"10.0.0.2/24"}]}`,
			want:   []Entry{{Interface: "net1", IPs: []string{"10.0.0.2"}}},
		},
		{
			name: "both families, each default route with its gateway",
			result: `{"interfaces":[{"name":"net1","sandbox":"x"}],
			          "ips":[{"interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"interface":0,"address":"2001:db8::2/64"}],
			          "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0","gw":"2001:db8::1"},{"dst":"0.0.0.0/1","gw":"10.0.0.9"},{"dst":"10.1.0.0/16","gw":"10.0.0.8"}]}`,
			want: []Entry{{Interface: "net1", IPs: []string{"10.0.0.2", "2001:db8::2"}, Gateway: []string{"10.0.0.1", "2001:db8::1"}}},
		},
		{
			name:   "a default route of a family without gateway names none",
			result: `{"interfaces":[{"name":"net1","sandbox":"x"}],"ips":[{"interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"}],"routes":[{"dst":"::/0"}]}`,
			want:   []Entry{{Interface: "net1", IPs: []string{"10.0.0.2"}}},
		},
		{
			name:      "several interfaces: the one with the gateway is the default and has the gateway",
			isDefault: true,
			result: `{"interfaces":[{"name":"foo","sandbox":"x"},{"name":"bar","sandbox":"x"}],
			          "ips":[{"interface":0,"address":"10.1.1.2/24"},{"interface":1,"address":"10.2.1.2/24","gateway":"10.2.1.1"}],
			          "routes":[{"dst":"0.0.0.0/0","gw":"10.2.1.1"}]}`,
			want: []Entry{
				{Interface: "foo", IPs: []string{"10.1.1.2"}},
				{Interface: "bar", IPs: []string{"10.2.1.2"}, Default: true, Gateway: []string{"10.2.1.1"}},
			},
		},
		{
			name:      "several interfaces without a gateway: the first is the default",
			isDefault: true,
			result:    `{"interfaces":[{"name":"foo","sandbox":"x"},{"name":"bar","sandbox":"x"}]}`,
			want:      []Entry{{Interface: "foo", Default: true}, {Interface: "bar"}},
		},
		{
			name:   "several interfaces of another network: none is the default",
			result: `{"interfaces":[{"name":"foo","sandbox":"x"},{"name":"bar","sandbox":"x"}],"ips":[{"interface":1,"address":"10.2.1.2/24","gateway":"10.2.1.1"}]}`,
			want:   []Entry{{Interface: "foo"}, {Interface: "bar", IPs: []string{"10.2.1.2"}}},
		},
		{
			name:   "name resolution",
			result: `{"interfaces":[{"name":"net1","sandbox":"x"}],"dns":{"nameservers":["4.2.2.1"],"domain":"foobar.test","search":["eng.foobar.test"],"options":["ndots:2"]}}`,
			want: []Entry{{Interface: "net1", DNS: DNS{
				Nameservers: []string{"4.2.2.1"}, Domain: "foobar.test", Search: []string{"eng.foobar.test"}, Options: []string{"ndots:2"},
			}}},
		},
		{
			name:   "rubbish inside the lists is passed over",
			result: `{"interfaces":[null,{"name":"net1","sandbox":"x"}],"ips":[null,{"interface":1,"address":"10.0.0.2/24"}],"routes":[null]}`,
			want:   []Entry{{Interface: "net1", IPs: []string{"10.0.0.2"}}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.want {
				tc.want[i].Name = "ns/net"
			}
			got := Entries([]Outcome{outcome(t, "ns/net", "net1", tc.isDefault, tc.result)})
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSpec21SameNetworkTwiceMakesTwoEntries(t *testing.T) {
	got := Entries([]Outcome{outcome(t, "d/n", "net1", false, net1), outcome(t, "d/n", "net2", false, "")})
	if len(got) != 2 || got[0].Name != "d/n" || got[1].Name != "d/n" {
		t.Errorf("got %+v, want two entries of d/n", got)
	}
}

// TestNoOutcomesIsAnEmptyList: "null" would break every reader.
func TestNoOutcomesIsAnEmptyList(t *testing.T) {
	if got, err := Text(nil); got != "[]" || err != nil {
		t.Errorf("got %q, %v, want []", got, err)
	}
}

func TestEventSaysWhatWasAdded(t *testing.T) {
	for _, tc := range []struct {
		o    Outcome
		want string
	}{
		{outcome(t, "default/vlan-2001", "net1", false, net1), "Add net1 [10.20.1.11/24] from default/vlan-2001"},
		{outcome(t, "d/n", "net2", false, `{"ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}]}`), "Add net2 [10.0.0.2/24 fd00::2/64] from d/n"},
		{outcome(t, "d/l2", "net3", false, ""), "Add net3 [] from d/l2"},
	} {
		if got := Added(tc.o); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	noted := outcome(t, "d/l2", "net3", false, "")
	noted.Notes = []string{"one", "two"}
	if got := Added(noted); got != "Add net3 [] from d/l2; one; two" {
		t.Errorf("with notes: %q", got)
	}
}

func TestEntrySaysWhichDefaultRouteThePodAskedFor(t *testing.T) {
	o := outcome(t, "default/lan", "net1", false, `{"interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.9"}]}`)
	o.Attachment.Claim = &plan.RouteClaim{Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}
	e := Entries([]Outcome{o})
	if len(e) != 1 || !slices.Equal(e[0].DefaultRoute, []string{"10.0.0.9"}) || !slices.Equal(e[0].Gateway, []string{"10.0.0.9"}) {
		t.Errorf("entries %+v", e)
	}
}

func FuzzEntries(f *testing.F) {
	for _, seed := range []string{eth0, net1, `{}`, `{"interfaces":[null],"ips":[null,{}],"routes":[null,{}]}`,
		`{"ips":[{"interface":-9,"address":"::ffff:1.2.3.4/120","gateway":"::"}],"routes":[{"dst":"::/0"}]}`} {
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, result []byte, isDefault bool) {
		var r current.Result
		if json.Unmarshal(result, &r) != nil {
			t.Skip() // not a CNI result; nothing of ours has run
		}
		o := Outcome{Attachment: plan.Attachment{Network: "ns/net", Default: isDefault}, Result: &r}
		text, err := Text([]Outcome{o})
		if err != nil {
			t.Fatal(err)
		}
		var entries []Entry
		if err := json.Unmarshal([]byte(text), &entries); err != nil {
			t.Fatalf("not readable: %v\n%s", err, text)
		}
		checkEntries(t, entries, isDefault)
	})
}

// checkEntries holds the rules of the specification that every list must obey.
func checkEntries(t *testing.T, entries []Entry, isDefault bool) {
	t.Helper()
	defaults := 0
	for _, e := range entries {
		if e.Default {
			defaults++
		}
		for _, s := range append(e.IPs, e.Gateway...) {
			if _, err := netip.ParseAddr(s); err != nil {
				t.Errorf("%+v: %v", e, err)
			}
		}
	}
	if len(entries) == 0 {
		t.Error("the attachment has no entry")
	}
	if want := map[bool]int{true: 1}[isDefault]; defaults != want {
		t.Errorf("%d entries are the default, want %d", defaults, want)
	}
}
