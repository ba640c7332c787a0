package bridge

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

func TestMembership(t *testing.T) {
	for _, tc := range []struct {
		name, conf string
		pvid       uint16
		want       string
	}{
		{"no vlan", `{}`, 1, ""},
		{"access", `{"vlan":7}`, 1, "+vlan 7 pvid untagged -vlan 1"},
		{"access in the default vlan", `{"vlan":1}`, 1, "+vlan 1 pvid untagged"},
		{"access, default kept", `{"vlan":7,"preserveDefaultVlan":true}`, 1, "+vlan 7 pvid untagged"},
		{"bridge without a default vlan", `{"vlan":7}`, 0, "+vlan 7 pvid untagged"},
		{"bridge with another default vlan", `{"vlan":7}`, 99, "+vlan 7 pvid untagged -vlan 99"},
		{"trunk", `{"vlanTrunk":[{"minID":2,"maxID":4}]}`, 1, "+vlan 2-4 +vlan 1 pvid untagged"},
		{"trunk with the default vlan in it", `{"vlan":9,"vlanTrunk":[{"minID":1,"maxID":4}]}`, 1, "+vlan 1-4 +vlan 9 pvid untagged"},
		{"ranges join and overlap", `{"vlanTrunk":[{"minID":10,"maxID":20},{"minID":15,"maxID":21,"id":22},{"id":40}]}`, 1, "+vlan 10-22 +vlan 40 +vlan 1 pvid untagged"},
		{"all", `{"vlanTrunk":[{"minID":1,"maxID":4094}]}`, 1, "+vlan 1-4094 +vlan 1 pvid untagged"},
		{"empty trunk", `{"vlanTrunk":[]}`, 1, ""},
	} {
		c, err := parse(driver.Spec{IfName: "net1", Conf: []byte(tc.conf)})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		add, remove := c.membership(tc.pvid)
		var words []string
		for _, v := range add {
			words = append(words, "+"+v.String())
		}
		for _, v := range remove {
			words = append(words, "-"+v.String())
		}
		if got := strings.Join(words, " "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// Marks that are prefixes of each other must not catch each other's rules.
func TestMarksOfDifferentAttachmentsDiffer(t *testing.T) {
	if marked("macspoofchk-c-net10", "macspoofchk-c-net1") {
		t.Error("net1 would take the rules of net10")
	}
	a := attachment{conf: conf{Name: "n"}, spec: driver.Spec{ContainerID: "c", IfName: "net1"}}
	if !marked(a.spoofMark(), a.spoofMark()) {
		t.Error("an attachment does not find its own rules")
	}
}

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","bridge":"br0","vlan":7}`,
		`{"vlanTrunk":[{"minID":1,"maxID":4094},{"id":5}],"preserveDefaultVlan":true}`,
		`{"vlanTrunk":[{"minID":-1,"maxID":9999999999}]}`,
		`{"vlanTrunk":[null]}`, `{"mtu":-5}`, `null`, `[]`, `{"args":{"cni":{"mac":"02:00:00:00:00:01"}}}`,
	} {
		f.Add([]byte(seed), "net1", "IgnoreUnknown=1;MAC=02:00:00:00:00:02")
	}
	f.Fuzz(func(t *testing.T, data []byte, ifName, args string) {
		c, err := parse(driver.Spec{IfName: ifName, Args: args, Conf: data})
		if err != nil {
			return
		}
		if len(c.Bridge) > rtnl.MaxName || len(c.gatewayLink()) > rtnl.MaxName && c.Gateway && c.layer3() {
			t.Errorf("a name that is too long: %q, %q", c.Bridge, c.gatewayLink())
		}
		if c.mac != nil && (len(c.mac) != 6 || c.mac[0]&1 != 0) {
			t.Errorf("mac %s", c.mac)
		}
		add, _ := c.membership(1)
		pvids := 0
		for _, v := range add {
			if v.From < 1 || v.To > maxVLAN || v.From > v.To {
				t.Errorf("range %+v", v)
			}
			if v.PVID {
				pvids++
			}
		}
		if pvids > 1 || pvids == 0 && len(add) > 0 {
			t.Errorf("%d untagged VLANs for frames that come in: %v", pvids, add)
		}
	})
}
