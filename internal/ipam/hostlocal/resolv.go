package hostlocal

import (
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// parseResolvConf reads a file in the format of resolv.conf(5). Like the
// reference it takes the last domain and all nameservers, search domains and
// options, and passes over what it does not know.
func parseResolvConf(data []byte) types.DNS {
	var dns types.DNS
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns
}
