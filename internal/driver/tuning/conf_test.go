package tuning

import (
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
)

// FuzzParse: whatever the configuration says, the files that it leads to are
// below /proc/sys/net, and no setting is there twice.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1","net/ipv6/conf/IFNAME/hop_limit":"9"}}`,
		`{"sysctl":{"net/../kernel/x":"1"}}`,
		`{"sysctl":{"net":"1","net.":"2",".net.x":"3"}}`,
		`{"sysctl":{"a":"1","a":"2"},"args":{"cni":{"sysctl":{"net.x":"1"},"mac":"02:00:00:00:00:01","promisc":false}}}`,
		`{"mac":"zz","mtu":-1,"txQLen":0,"allmulti":true,"promisc":true,"dataDir":"/x","runtimeConfig":{"mac":""}}`,
		`{"sysctl":null}`, `{"sysctl":{"x":{}}}`, `[]`, `{`,
	} {
		f.Add(seed, "net1", "MAC=02:00:00:00:00:02")
	}
	f.Fuzz(func(t *testing.T, text, ifName, args string) {
		c, err := parse(driver.Spec{Conf: []byte(text), IfName: ifName, Args: args})
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, s := range c.sysctls {
			if strings.HasPrefix(s.Path, "/") || s.Path == "" || strings.Contains("/"+s.Path+"/", "/../") || seen[s.Path] {
				t.Errorf("sysctl %q leads to %q", s.key, s.Path)
			}
			seen[s.Path] = true
		}
	})
}

func FuzzAllowlist(f *testing.F) {
	f.Add("^net\\.ipv4\n\n  ipv6 ", "net.ipv4.x")
	f.Add("[", "net.x")
	f.Fuzz(func(t *testing.T, list, key string) {
		if err := allowed([]sysctl{{key: key}}, list); err == nil && strings.TrimSpace(list) == "" {
			t.Error("an empty list allows something")
		}
	})
}
