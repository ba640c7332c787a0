package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

const (
	// flannelType is the plugin of Flannel. It builds nothing itself: it makes
	// a configuration for another plugin, bridge unless told otherwise, of its
	// own one and of the node's subnet.
	flannelType = "flannel"
	// FlannelDir is where Flannel's agent writes the node's subnet.
	FlannelDir = "/run/flannel"

	flannelSubnetFile = FlannelDir + "/subnet.env"
)

// expand puts the delegates in the places of the plugins that only delegate:
// what is attached, recorded and shown is what will be built. The network may
// be shared with other plans and is not changed.
func (a *Attachment) expand(in Input) error {
	var plugins []Plugin
	for _, p := range a.Config.Plugins {
		if p.Type == flannelType {
			delegate, why, err := flannelDelegate(p, in.SubnetFile)
			if err != nil {
				return fmt.Errorf("plugin %s: %w", p.Type, err)
			}
			a.because("%s", why)
			p = delegate
		}
		plugins = append(plugins, p)
	}
	a.Config.Plugins = plugins
	return nil
}

// flannelDelegate makes of a flannel plugin the one that it delegates to, as
// flannel-io/cni-plugin does, or returns p itself when its subnet file is one
// that cannot be read here.
func flannelDelegate(p Plugin, read func(string) ([]byte, error)) (Plugin, string, error) {
	ms, err := members(p.Conf)
	if err != nil {
		return p, "", err
	}
	value, _ := lookup(ms, "subnetFile")
	file, err := stringOf(value)
	if err != nil {
		return p, "", fmt.Errorf("subnetFile: %w", err)
	}
	if file == "" {
		file = flannelSubnetFile
	}
	if read == nil {
		return p, "flannel: the node decides, by its " + file, nil
	}
	text, err := read(file)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(file) != FlannelDir {
		return p, "flannel: left to the program, as " + file + " is not seen here", nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return p, "", later("there is no %s yet: Flannel's agent writes it when it has a subnet for the node", file)
	}
	if err != nil {
		return p, "", later("%w", err)
	}
	s, err := parseSubnet(string(text))
	if err != nil {
		return p, "", later("%s: %w", file, err)
	}
	conf, err := s.delegate(ms)
	if err != nil {
		return p, "", err
	}
	d, err := parsePlugin(conf)
	if err != nil {
		return p, "", fmt.Errorf("delegate: %w", err)
	}
	// The arguments of the runtime are those that flannel itself declares.
	d.Capabilities = p.Capabilities
	return d, fmt.Sprintf("flannel: delegate %s with the node's subnet %s of %s", d.Type, joinPrefixes(s.subnets), file), nil
}

// subnet is what Flannel's agent says of the node.
type subnet struct {
	networks []netip.Prefix // of the cluster, IPv4 first
	subnets  []netip.Prefix // of the node
	mtu      int
	masq     bool // the agent masquerades, so the plugin need not
}

// parseSubnet reads a subnet file: lines of KEY=VALUE, of which only those that
// matter are looked at. One that is not complete is being written.
func parseSubnet(text string) (s subnet, err error) {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	for _, f := range []struct {
		keys [2]string
		to   *[]netip.Prefix
	}{
		{[2]string{"FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"}, &s.networks},
		{[2]string{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}, &s.subnets},
	} {
		for _, key := range f.keys {
			list, err := parsePrefixes(values[key])
			if err != nil {
				return s, fmt.Errorf("%s: %w", key, err)
			}
			*f.to = append(*f.to, list...)
		}
		if len(*f.to) == 0 {
			return s, fmt.Errorf("neither %s nor %s is there", f.keys[0], f.keys[1])
		}
	}
	mtu, err := strconv.ParseUint(values["FLANNEL_MTU"], 10, 31)
	if err != nil {
		return s, fmt.Errorf("FLANNEL_MTU %s: no number", quote(values["FLANNEL_MTU"]))
	}
	s.mtu = int(mtu)
	masq, ok := values["FLANNEL_IPMASQ"]
	if !ok {
		return s, errors.New("FLANNEL_IPMASQ is not there")
	}
	s.masq = masq == "true"
	return s, nil
}

// parsePrefixes reads prefixes separated by commas, host bits cleared: the
// agent writes the subnet with the address of its gateway.
func parsePrefixes(text string) ([]netip.Prefix, error) {
	if text == "" {
		return nil, nil
	}
	var list []netip.Prefix
	for _, item := range strings.Split(text, ",") {
		p, err := netip.ParsePrefix(item)
		if err != nil {
			return nil, fmt.Errorf("%s is no prefix, such as 10.244.1.1/24", quote(item))
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

func joinPrefixes(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

// delegate is the configuration for the plugin behind flannel: what the author
// wrote below "delegate", and what is missing there.
func (s subnet) delegate(flannel []member) (json.RawMessage, error) {
	conf, err := objectIn(flannel, "delegate")
	if err != nil {
		return nil, err
	}
	ms, err := members(conf)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := lookup(ms, key); ok {
			return nil, fmt.Errorf("delegate: key %q is not the author's to set, flannel does", key)
		}
	}
	ipam, err := s.ipam(flannel)
	if err != nil {
		return nil, err
	}
	kind, given := lookup(ms, "type")
	if !given {
		kind = json.RawMessage(`"bridge"`)
	}
	additions := []member{
		{key: "type", value: kind},
		{key: "ipMasq", value: json.RawMessage(strconv.FormatBool(!s.masq))},
		{key: "mtu", value: json.RawMessage(strconv.Itoa(s.mtu))},
	}
	if name, err := stringOf(kind); err == nil && name == "bridge" {
		additions = append(additions, member{key: "isGateway", value: json.RawMessage(`true`)})
	}
	additions = append(additions, member{key: "ipam", value: ipam})
	if rc, ok := lookup(flannel, "runtimeConfig"); ok && !isNull(rc) {
		additions = append(additions, member{key: "runtimeConfig", value: rc})
	}
	for _, m := range additions {
		if _, given := lookup(ms, m.key); given && m.key != "runtimeConfig" {
			continue
		}
		if conf, err = setMember(conf, m.key, m.value); err != nil {
			return nil, fmt.Errorf("delegate: %w", err)
		}
	}
	return conf, nil
}

// ipam is the delegate's: the author's, with the node's subnets as ranges and
// routes to all of the cluster's networks.
func (s subnet) ipam(flannel []member) (json.RawMessage, error) {
	ipam, err := objectIn(flannel, "ipam")
	if err != nil {
		return nil, err
	}
	ms, err := members(ipam)
	if err != nil {
		return nil, fmt.Errorf("ipam: %w", err)
	}
	if _, ok := lookup(ms, "type"); !ok {
		if ipam, err = setMember(ipam, "type", []byte(`"host-local"`)); err != nil {
			return nil, fmt.Errorf("ipam: %w", err)
		}
	}
	var ranges [][]map[string]string
	for _, p := range s.subnets {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
	}
	var routes []json.RawMessage
	if written, _ := lookup(ms, "routes"); !isNull(written) {
		if routes, err = elements(written, 0); err != nil {
			return nil, fmt.Errorf("ipam: routes: %w", err)
		}
	}
	for _, p := range s.networks {
		routes = append(routes, json.RawMessage(fmt.Sprintf(`{"dst":%q}`, p)))
	}
	for _, key := range []struct {
		name  string
		value any
	}{{"ranges", ranges}, {"routes", routes}} {
		text, err := json.Marshal(key.value)
		if err != nil {
			return nil, fmt.Errorf("ipam: %s: %w", key.name, err)
		}
		if ipam, err = setMember(ipam, key.name, text); err != nil {
			return nil, fmt.Errorf("ipam: %w", err)
		}
	}
	return ipam, nil
}
