package portmap

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
)

func TestRefusals(t *testing.T) {
	mapped := func(m string) string { return `{"runtimeConfig":{"portMappings":[` + m + `]}}` }
	for conf, want := range map[string]string{
		`{"backend":"ebtables"}`:                                                  `backend "ebtables" is neither`,
		`{"markMasqBit":3,"externalSetMarkChain":"X"}`:                            "exclude each other",
		`{"markMasqBit":32}`:                                                      "between 0 and 31",
		`{"markMasqBit":-1}`:                                                      "between 0 and 31",
		`{"backend":"nftables","externalSetMarkChain":"X"}`:                       "backend nftables does not have what is asked for in externalSetMarkChain",
		`{"backend":"nftables","conditionsV4":["-s","1.2.3.4"]}`:                  "asked for in conditionsV4",
		`{"backend":"iptables","conditionsV6":["ip6 saddr fd00::1"]}`:             "asked for in conditionsV6",
		`{"conditionsV4":["! -s","1.2.3.4"],"conditionsV6":["mark != 0x1"]}`:      "some options are for iptables",
		`{"conditionsV4":["ip saddr { 1.2.3.4, 1.2.3.5 }"]}`:                      `"{" is no address`,
		`{"conditionsV4":["ip6 saddr fd00::1"]}`:                                  "other address family",
		`{"conditionsV4":["ip ttl 3"]}`:                                           `"ttl" is not known`,
		`{"conditionsV4":["drop"]}`:                                               `"drop" is not known`,
		`{"conditionsV4":["iifname"]}`:                                            "no name of one link",
		`{"conditionsV4":["tcp sport high"]}`:                                     `"high" is no port`,
		mapped(`{"hostPort":0,"containerPort":1,"protocol":"tcp"}`):               "hostPort 0",
		mapped(`{"hostPort":1,"containerPort":65536,"protocol":"tcp"}`):           "containerPort 65536",
		mapped(`{"hostPort":1,"containerPort":1,"protocol":"icmp"}`):              `protocol "icmp"`,
		mapped(`{"hostPort":1,"containerPort":1}`):                                `protocol ""`,
		mapped(`{"hostPort":1,"containerPort":1,"protocol":"udp","hostIP":"lo"}`): `hostIP "lo"`,
	} {
		_, err := parse(driver.Spec{Conf: []byte(conf)})
		var coded *types.Error
		if !errors.As(err, &coded) || coded.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", conf, err, want)
		}
	}
	if _, err := parse(driver.Spec{Conf: []byte(`{"snat":1}`)}); err == nil {
		t.Error("snat 1 is accepted")
	}
}

// Arguments of a configuration must not become rules of their own.
func TestConditionWithALineEndIsRefused(t *testing.T) {
	c, err := parse(driver.Spec{Conf: []byte(`{"conditionsV4":["-s","1.2.3.4\n-A INPUT"],` +
		`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp"}]}}`)})
	if err != nil {
		t.Fatal(err)
	}
	a := attachment{conf: c}
	if _, err := a.ipRules(single(loopback4)); err == nil || !strings.Contains(err.Error(), "control characters") {
		t.Errorf("rules: %v", err)
	}
}

func TestManyPortsShareRules(t *testing.T) {
	var many []mapping
	for port := range 31 {
		many = append(many, mapping{HostPort: port + 1, Protocol: "udp"})
	}
	if got := byProtocol(many); len(got) != 3 || got[2].ports != "31" || got[0].ports != "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15" {
		t.Errorf("%v", got)
	}
}

func FuzzConf(f *testing.F) {
	for _, seed := range []string{
		`{}`, `[`, `{"conditionsV4":["ip saddr != 10.0.0.0/8 tcp sport 53","meta mark 0x1"],"conditionsV6":["iifname \"eth0\""]}`,
		`{"conditionsV4":["!","-s","1.2.3.4"],"markMasqBit":3}`,
		`{"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":65535,"protocol":"SCTP","hostIP":"::ffff:1.2.3.4"}]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(driver.Spec{Conf: data})
		if err != nil {
			return
		}
		for _, m := range c.RuntimeConfig.Mappings {
			if m.protocol == 0 || m.HostPort < 1 || m.HostPort > 65535 || m.HostIP != "" && !m.hostIP.IsValid() {
				t.Errorf("%s: accepted %+v", data, m)
			}
		}
		a := attachment{conf: c, spec: driver.Spec{ContainerID: "c"}}
		rules, err := a.ipRules(single(loopback4))
		if err != nil {
			return
		}
		for _, line := range a.enter(rules) {
			if strings.ContainsAny(line, "\n\r") {
				t.Errorf("%s: line %q", data, line)
			}
		}
	})
}
