package plan

import "testing"

func TestNetworksThatMayMakeADefaultRoute(t *testing.T) {
	for conf, may := range map[string]bool{
		`{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24","routes":[{"dst":"10.0.0.0/8"}]}}`: false,
		`{"type":"macvlan","master":"eth1"}`: false,
		`{"plugins":[{"type":"bridge","ipam":{"type":"static","addresses":[{"address":"10.0.0.1/24"}]}},{"type":"tuning"}]}`: false,
		`{"type":"bridge","isDefaultGateway":true}`:                                                                                         true,
		`{"type":"ipvlan","ipam":{"type":"static","routes":[{"dst":"0.0.0.0/0"}]}}`:                                                         true,
		`{"type":"ipvlan","ipam":{"type":"host-local","subnet":"fd00::/64","routes":[{"dst":"10.0.0.0/8"},{"dst":"::/0"}]}}`:                true,
		`{"plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},{"type":"sbr"}]}`: true, // until sbr moves it
		`{"type":"bridge","ipam":{"type":"dhcp"}}`:                                                                                          true,
		`{"type":"cilium-cni"}`:                                  true,
		`{"plugins":[{"type":"bridge"},{"type":"of-somebody"}]}`: true,
	} {
		n, err := ParseNetwork([]byte(`{"cniVersion":"1.0.0","name":"n",`+conf[1:]), "n")
		if err != nil {
			t.Fatal(err)
		}
		if is := (Attachment{Config: n}).MayMakeDefault(); is != may {
			t.Errorf("%s: %v", conf, is)
		}
	}
}
