package hostlocal

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/ipam/request"
)

// config is what a request asks for once every source is read.
type config struct {
	dir        string // of the network, below the data dir
	sets       []rangeSet
	asked      []netip.Addr // distinct
	routes     []*types.Route
	resolvConf string
}

// conf is the configuration as people write it.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	IPAM       *struct {
		rangeConf            // one range, the older way to write it
		Ranges     []setConf `json:"ranges"`
		Routes     []*types.Route
		ResolvConf string `json:"resolvConf"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPRanges []setConf `json:"ipRanges"`
		IPs      []string  `json:"ips"`
	} `json:"runtimeConfig"`
	Args *struct {
		CNI *struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

type setConf []rangeConf

type rangeConf struct {
	Subnet     *string `json:"subnet"`
	RangeStart string  `json:"rangeStart"`
	RangeEnd   string  `json:"rangeEnd"`
	Gateway    string  `json:"gateway"`
}

// parse reads everything that Add and Check need. dataDir serves where the
// configuration names none.
func parse(data []byte, cniArgs, dataDir string) (config, error) {
	dir, err := parseDir(data, dataDir)
	if err != nil {
		return config{}, err
	}
	var c conf
	if err := request.Decode(data, &c); err != nil {
		return config{}, err
	}
	if c.IPAM == nil {
		return config{}, request.BadConf("ipam is missing")
	}
	if err := request.Routes(c.IPAM.Routes); err != nil {
		return config{}, err
	}
	asked, err := askedAddrs(&c, cniArgs)
	if err != nil {
		return config{}, err
	}
	sets, err := rangeSets(&c)
	if err != nil {
		return config{}, err
	}
	return config{dir: dir, sets: sets, asked: asked, routes: c.IPAM.Routes, resolvConf: c.IPAM.ResolvConf}, nil
}

// parseDir reads where the network's addresses are recorded, and nothing else:
// Del must work whatever has become of the rest.
func parseDir(data []byte, dataDir string) (string, error) {
	name, files, err := parseFiles(data, dataDir)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(files.DataDir) {
		return "", request.BadConf("ipam.dataDir %q is not an absolute path", files.DataDir)
	}
	return filepath.Join(files.DataDir, name), nil
}

// parsePaths lists the files and directories of the node that serving the
// configuration takes.
func parsePaths(data []byte, dataDir string) ([]string, error) {
	_, files, err := parseFiles(data, dataDir)
	if err != nil {
		return nil, err
	}
	var resolvConf string
	if len(files.ResolvConf) > 0 {
		if err := json.Unmarshal(files.ResolvConf, &resolvConf); err != nil {
			return nil, request.BadConf("ipam.resolvConf: %v", err)
		}
	}
	if resolvConf == "" {
		return []string{files.DataDir}, nil
	}
	return []string{files.DataDir, resolvConf}, nil
}

// hostFiles are the keys of ipam that name files. A resolvConf of the wrong
// type must not keep Del from its work.
type hostFiles struct {
	DataDir    string          `json:"dataDir"`
	ResolvConf json.RawMessage `json:"resolvConf"`
}

func parseFiles(data []byte, dataDir string) (name string, files hostFiles, err error) {
	var c struct {
		Name string          `json:"name"`
		IPAM json.RawMessage `json:"ipam"`
	}
	if err := request.Decode(data, &c); err != nil {
		return "", files, err
	}
	if len(c.IPAM) > 0 {
		if err := json.Unmarshal(c.IPAM, &files); err != nil {
			return "", files, request.BadConf("ipam.dataDir: %v", err)
		}
	}
	files.DataDir = cmp.Or(files.DataDir, dataDir)
	return c.Name, files, nil
}

// askedAddrs collects the addresses that CNI_ARGS, args.cni.ips and
// runtimeConfig.ips ask for, all of them together. One that several ask for
// counts once.
func askedAddrs(c *conf, cniArgs string) ([]netip.Addr, error) {
	args := request.Args(cniArgs)
	var all []netip.Addr
	if s := args["IP"]; s != "" {
		a, err := request.AddrOrPrefix(s)
		if err != nil {
			return nil, request.BadArgs("IP: %v", err)
		}
		all = append(all, a)
	}
	add := func(source string, list []string) error {
		for i, s := range list {
			a, err := request.AddrOrPrefix(s)
			if err != nil {
				return request.BadConf("%s[%d]: %v", source, i, err)
			}
			all = append(all, a)
		}
		return nil
	}
	if c.Args != nil && c.Args.CNI != nil {
		if err := add("args.cni.ips", c.Args.CNI.IPs); err != nil {
			return nil, err
		}
	}
	if err := add("runtimeConfig.ips", c.RuntimeConfig.IPs); err != nil {
		return nil, err
	}
	return distinct(all), nil
}

func distinct(addrs []netip.Addr) []netip.Addr {
	seen := make(map[netip.Addr]bool)
	var out []netip.Addr
	for _, a := range addrs {
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}

// rangeSets orders the sets as the reference does, which numbers them in its
// files: runtimeConfig.ipRanges, the single range, ipam.ranges.
func rangeSets(c *conf) ([]rangeSet, error) {
	in := append([]setConf(nil), c.RuntimeConfig.IPRanges...)
	if c.IPAM.Subnet != nil {
		in = append(in, setConf{c.IPAM.rangeConf})
	}
	in = append(in, c.IPAM.Ranges...)
	if len(in) == 0 {
		return nil, request.BadConf("ipam names no range to allocate from")
	}
	var sets []rangeSet
	var first []netip.Addr
	for i, sc := range in {
		set, err := newSet(sc)
		if err != nil {
			return nil, request.BadConf("range set %d: %v", i, err)
		}
		for j, other := range sets {
			if set.overlaps(other) {
				return nil, request.BadConf("range set %d (%v) overlaps with range set %d (%v)", j, other, i, set)
			}
		}
		sets = append(sets, set)
		first = append(first, set[0].first)
	}
	return sets, request.OnePerFamily(c.CNIVersion, first)
}
