package hostlocal

import (
	"testing"

	"braid.dev/braid/internal/ipam"
)

// In a container the daemon sees few of the node's files. What lies elsewhere
// must not be recorded in the container's own file system, where it would be
// lost, or refused because that is read-only.
func TestServesOnlyWhatItCanSee(t *testing.T) {
	all, some := New(Config{}).(ipam.Limited), New(Config{HostDirs: []string{"/var/lib/cni/networks"}}).(ipam.Limited)
	for conf, seen := range map[string]bool{
		`{"name":"n","ipam":{}}`:                                               true,
		`{"name":"n","ipam":{"dataDir":"/var/lib/cni/networks"}}`:              true,
		`{"name":"n","ipam":{"dataDir":"/var/lib/cni/networks/below"}}`:        true,
		`{"name":"n","ipam":{"dataDir":"/var/lib/cni/networks/../elsewhere"}}`: false,
		`{"name":"n","ipam":{"dataDir":"/var/lib/cni/networks-too"}}`:          false,
		`{"name":"n","ipam":{"dataDir":"/mnt/cluster-ipam"}}`:                  false,
		`{"name":"n","ipam":{"resolvConf":"/etc/resolv.conf"}}`:                false,
		`{"name":"n","ipam":{"resolvConf":""}}`:                                true,
		`{"name":"n","ipam":{"resolvConf":7}}`:                                 true, // refused by name when called
		`not JSON`:                                                             true,
	} {
		if got := some.Serves([]byte(conf)); got != seen {
			t.Errorf("Serves(%s) = %v, want %v", conf, got, seen)
		}
		if !all.Serves([]byte(conf)) {
			t.Errorf("%s is not served although every directory is seen", conf)
		}
	}
}
