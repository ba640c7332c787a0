package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// NetworksAnnotation is the pod annotation that selects networks (NPWG
	// specification 1.3, section 4).
	NetworksAnnotation = "k8s.v1.cni.cncf.io/networks"
	// DefaultNetworkAnnotation is the pod annotation, known from Multus, that
	// replaces the pod's default network by a NetworkAttachmentDefinition.
	DefaultNetworkAnnotation = "v1.multus-cni.io/default-network"
	// ResourceAnnotation is the annotation of a NetworkAttachmentDefinition that
	// names the extended resource whose devices it is made of.
	ResourceAnnotation = "k8s.v1.cni.cncf.io/resourceName"

	// maxAnnotation is what Kubernetes allows all annotations of an object
	// together, in bytes.
	maxAnnotation = 256 << 10
	// defaultBurst, in bits, is the burst of a rate that comes without one,
	// which the bandwidth plugin refuses: no limit in practice, as the kubelet
	// has it for its own bandwidth annotations.
	defaultBurst = math.MaxInt32
	// These keep one pod from keeping a node busy: how many elements there may
	// be, and of each how many addresses and port mappings and how many bytes of
	// cni-args.
	maxSelections = 256
	maxIPs        = 64
	maxMappings   = 1024
	maxArgs       = 32 << 10
)

// Selection is one element of the networks annotation (NPWG specification 1.3,
// section 4.1): a network and what the pod asks of it. All values are valid,
// and the zero value of a field means that the pod did not ask. Records hold it
// in JSON, so that a field that is added later must be left out when it is zero.
type Selection struct {
	// Namespace is empty for the pod's own.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	IfName    string `json:"interface,omitempty"`
	// IPs are addresses in canonical form, each with or without a prefix
	// length.
	IPs []string `json:"ips,omitempty"`
	// MAC is a 6-byte address, InfinibandGUID an 8-byte one, in lower case with
	// colons.
	MAC            string `json:"mac,omitempty"`
	InfinibandGUID string `json:"infiniband-guid,omitempty"`
	// CNIArgs become args.cni of every plugin.
	CNIArgs      map[string]json.RawMessage `json:"cni-args,omitempty"`
	PortMappings []PortMapping              `json:"portMappings,omitempty"`
	Bandwidth    *Bandwidth                 `json:"bandwidth,omitempty"`
	DeviceID     string                     `json:"deviceID,omitempty"`
	// IPAMClaim is the IPAMClaim in the pod's namespace that keeps the
	// addresses of this attachment.
	IPAMClaim string `json:"ipam-claim-reference,omitempty"`
	// DefaultRoute is nil when the pod does not ask, which is not the same as
	// asking without a gateway.
	DefaultRoute *RouteClaim `json:"default-route,omitempty"`
}

// PortMapping forwards a port of the node, in the form of the portMappings
// capability.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth limits the traffic, in the form of the bandwidth capability: rates
// in bits per second, bursts in bits.
type Bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

// ParseNetworks reads the value of the networks annotation in both of its
// forms, the comma-separated list of [namespace/]name[@interface] and the JSON
// list of network selection elements. An empty value selects nothing. Errors
// name the element by its place, counted from 1, and the value at fault.
//
// One invalid element makes the whole value invalid. The specification then
// has it ignored; Braid refuses the pod instead, as a pod that lacks a network
// it asked for is worse than one that does not start.
//
// An element with addresses of its own and an IPAMClaim is invalid, as the
// claim decides the addresses (section 4.1.2).
func ParseNetworks(annotation string) ([]Selection, error) {
	selections, err := parseSelections(annotation)
	if err != nil {
		return nil, err
	}
	for i, s := range selections {
		if s.IPAMClaim != "" && len(s.IPs) > 0 {
			return nil, fmt.Errorf("element %d: ipam-claim-reference and ips exclude each other: the claim holds the addresses", i+1)
		}
	}
	return selections, nil
}

// parseSelections reads what ParseNetworks does. The annotation of the default
// network has the same form, but is Multus' own: there the webhooks of
// OVN-Kubernetes and KubeVirt write both a claim and the addresses it is to
// begin with.
func parseSelections(annotation string) ([]Selection, error) {
	if annotation == "" {
		return nil, nil
	}
	if len(annotation) > maxAnnotation {
		return nil, fmt.Errorf("%d bytes are too long; %d are allowed", len(annotation), maxAnnotation)
	}
	if strings.TrimSpace(annotation) == "" {
		return nil, fmt.Errorf("nothing but white space; remove the annotation or name a network")
	}
	parse, items := parseShort, []string(nil)
	if strings.ContainsAny(annotation, `[{"`) {
		if err := shallow([]byte(annotation)); err != nil {
			return nil, err
		}
		list, err := elements([]byte(annotation), maxSelections)
		if err != nil {
			return nil, err
		}
		parse = parseElement
		for _, e := range list {
			items = append(items, string(e))
		}
	} else if n := strings.Count(annotation, ",") + 1; n > maxSelections {
		return nil, fmt.Errorf("%d elements are too many; %d are allowed", n, maxSelections)
	} else {
		items = strings.Split(annotation, ",")
	}
	var selections []Selection
	for i, item := range items {
		s, err := parse(item)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i+1, err)
		}
		selections = append(selections, s)
	}
	return selections, nil
}

// parseShort reads [namespace/]name[@interface].
func parseShort(item string) (s Selection, err error) {
	item = strings.TrimSpace(item)
	if item == "" {
		return s, fmt.Errorf("empty; is there a comma too many?")
	}
	rest, ifName, at := strings.Cut(item, "@")
	if at {
		if s.IfName, err = interfaceName(strings.TrimSpace(ifName)); err != nil {
			return s, fmt.Errorf("%s: %w", quote(item), err)
		}
	}
	s.Name = strings.TrimSpace(rest)
	if namespace, name, ok := strings.Cut(rest, "/"); ok {
		s.Name = strings.TrimSpace(name)
		if s.Namespace, err = namespaceName(strings.TrimSpace(namespace)); err != nil {
			return s, fmt.Errorf("%s: %w", quote(item), err)
		}
	}
	if err := definitionName(s.Name); err != nil {
		return s, fmt.Errorf("%s: %w", quote(item), err)
	}
	return s, nil
}

// elementKeys reads each key of a network selection element into s.
var elementKeys = map[string]func(s *Selection, value json.RawMessage) error{
	"name":                 func(s *Selection, v json.RawMessage) error { return readText(v, &s.Name) },
	"namespace":            readNamespace,
	"interface":            readInterface,
	"interfaceRequest":     readInterface, // what early releases of Multus called it
	"ips":                  readIPs,
	"mac":                  readMAC,
	"infiniband-guid":      readGUID,
	"cni-args":             readCNIArgs,
	"portMappings":         readPortMappings,
	"bandwidth":            readBandwidth,
	"deviceID":             readDevice,
	"default-route":        readDefaultRoute,
	"ipam-claim-reference": readClaim,
}

// parseElement reads one network selection element. A key with a period is
// somebody else's and ignored; one without is reserved by the specification
// (section 4.1.2), so an unknown one is a mistake that would otherwise show as
// a network that lacks something.
func parseElement(item string) (s Selection, err error) {
	ms, err := members([]byte(item))
	if err != nil {
		return s, err
	}
	if name, _ := lookup(ms, "name"); isNull(name) {
		return s, fmt.Errorf("name: missing")
	}
	seen := map[string]bool{}
	for _, m := range ms {
		if seen[m.key] {
			return s, fmt.Errorf("%s: written twice", m.key)
		}
		seen[m.key] = true
		read, known := elementKeys[m.key]
		switch {
		case known && !isNull(m.value):
			if err := read(&s, m.value); err != nil {
				return s, fmt.Errorf("%s: %w", m.key, err)
			}
		case !known && !strings.Contains(m.key, "."):
			return s, fmt.Errorf("key %s: unknown%s; keys of your own need a period, such as example.com/key", quote(m.key), suggestion(m.key))
		}
	}
	if err := definitionName(s.Name); err != nil {
		return s, fmt.Errorf("name: %w", err)
	}
	return s, nil
}

func suggestion(key string) string {
	for _, known := range slices.Sorted(maps.Keys(elementKeys)) {
		if strings.EqualFold(known, key) {
			return fmt.Sprintf(" (did you mean %q?)", known)
		}
	}
	return ""
}

func readText(value json.RawMessage, to *string) (err error) {
	*to, err = stringOf(value)
	return err
}

func readNamespace(s *Selection, value json.RawMessage) error {
	name, err := stringOf(value)
	if err == nil && name != "" {
		s.Namespace, err = namespaceName(name)
	}
	return err
}

func readInterface(s *Selection, value json.RawMessage) error {
	name, err := stringOf(value)
	if err != nil || name == "" {
		return err
	}
	if s.IfName != "" && s.IfName != name {
		return fmt.Errorf("%s, but also %s", quote(name), quote(s.IfName))
	}
	s.IfName, err = interfaceName(name)
	return err
}

func readIPs(s *Selection, value json.RawMessage) error {
	list, err := elements(value, maxIPs)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("the list is empty; leave the key out to let the network choose")
	}
	seen := map[netip.Addr]bool{}
	for i, e := range list {
		written, err := stringOf(e)
		if err != nil {
			return fmt.Errorf("element %d: %w", i+1, err)
		}
		ip, addr, err := address(written)
		if err != nil {
			return fmt.Errorf("element %d, %s: %w", i+1, quote(written), err)
		}
		if seen[addr] {
			return fmt.Errorf("element %d, %s: asked for twice", i+1, quote(written))
		}
		seen[addr] = true
		s.IPs = append(s.IPs, ip)
	}
	return nil
}

// address verifies an address with or without a prefix length and returns it
// in canonical form.
func address(s string) (canonical string, addr netip.Addr, err error) {
	if prefix, err := netip.ParsePrefix(s); err == nil {
		canonical, addr = prefix.String(), prefix.Addr()
	} else if strings.Contains(s, "/") {
		return "", addr, fmt.Errorf("no address with prefix length, such as 10.20.1.11/24")
	} else if addr, err = netip.ParseAddr(s); err != nil {
		return "", addr, fmt.Errorf("no IP address")
	} else {
		canonical = addr.String()
	}
	switch {
	case addr.Zone() != "":
		return "", addr, fmt.Errorf("an address with a zone belongs to one node only")
	case addr.Is4In6():
		return "", addr, fmt.Errorf("an IPv4 address in IPv6 notation; write %s", addr.Unmap())
	case addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback():
		return "", addr, fmt.Errorf("no address of a pod on a network")
	}
	return canonical, addr, nil
}

func readMAC(s *Selection, value json.RawMessage) (err error) {
	s.MAC, err = hardware(value, 6, "02:00:00:00:00:01")
	return err
}

func readGUID(s *Selection, value json.RawMessage) (err error) {
	s.InfinibandGUID, err = hardware(value, 8, "02:00:00:00:00:00:00:01")
	return err
}

func hardware(value json.RawMessage, size int, example string) (string, error) {
	s, err := stringOf(value)
	if err != nil || s == "" {
		return "", err
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != size {
		return "", fmt.Errorf("%s: no address of %d bytes, such as %s", quote(s), size, example)
	}
	return hw.String(), nil
}

// readDevice reads the name of a device, which the device's plugin chose.
func readDevice(s *Selection, value json.RawMessage) (err error) {
	const most = 253 // that of every name in Kubernetes
	if err := readText(value, &s.DeviceID); err != nil {
		return err
	}
	if len(s.DeviceID) > most || strings.ContainsFunc(s.DeviceID, notInName) {
		return fmt.Errorf("%s is no name of a device, such as 0000:03:02.3", quote(s.DeviceID))
	}
	return nil
}

func readClaim(s *Selection, value json.RawMessage) error {
	if err := readText(value, &s.IPAMClaim); err != nil || s.IPAMClaim == "" {
		return err
	}
	if !objectName(s.IPAMClaim) {
		return fmt.Errorf("%s is no name of an IPAMClaim (lower-case letters, digits, '-' and '.')", quote(s.IPAMClaim))
	}
	return nil
}

func readCNIArgs(s *Selection, value json.RawMessage) error {
	ms, err := members(value)
	if err != nil {
		return err
	}
	if len(value) > maxArgs {
		return fmt.Errorf("%d bytes are too long; %d are allowed", len(value), maxArgs)
	}
	s.CNIArgs = map[string]json.RawMessage{}
	for _, m := range ms {
		s.CNIArgs[m.key] = m.value
	}
	return nil
}

func readPortMappings(s *Selection, value json.RawMessage) error {
	list, err := elements(value, maxMappings)
	if err != nil {
		return err
	}
	type endpoint struct {
		port         int
		protocol, ip string
	}
	seen := map[endpoint]bool{}
	for i, e := range list {
		m, err := portMapping(e)
		if err != nil {
			return fmt.Errorf("element %d: %w", i+1, err)
		}
		key := endpoint{m.HostPort, m.Protocol, m.HostIP}
		if seen[key] {
			return fmt.Errorf("element %d: hostPort %d/%s is mapped twice", i+1, m.HostPort, m.Protocol)
		}
		seen[key] = true
		s.PortMappings = append(s.PortMappings, m)
	}
	return nil
}

func portMapping(value json.RawMessage) (m PortMapping, err error) {
	if err := strict(value, &m); err != nil {
		return m, fmt.Errorf("want numbers hostPort and containerPort and strings protocol and hostIP: %w", err)
	}
	if m.HostPort < 1 || m.HostPort > 65535 {
		return m, fmt.Errorf("hostPort %d: not in 1–65535", m.HostPort)
	}
	if m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return m, fmt.Errorf("containerPort %d: not in 1–65535", m.ContainerPort)
	}
	// Plugins compare the protocol in lower case, as runtimes pass it.
	m.Protocol = strings.ToLower(m.Protocol)
	if m.Protocol == "" {
		m.Protocol = "tcp"
	}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, m.Protocol) {
		return m, fmt.Errorf("protocol %s: not TCP, UDP or SCTP", quote(m.Protocol))
	}
	if m.HostIP != "" {
		addr, err := netip.ParseAddr(m.HostIP)
		if err != nil {
			return m, fmt.Errorf("hostIP %s: no IP address", quote(m.HostIP))
		}
		m.HostIP = addr.String()
	}
	return m, nil
}

func readBandwidth(s *Selection, value json.RawMessage) error {
	var b Bandwidth
	if err := strict(value, &b); err != nil {
		return fmt.Errorf("want whole numbers ingressRate, ingressBurst, egressRate and egressBurst: %w", err)
	}
	for _, d := range []struct {
		name        string
		rate, burst *int64
	}{{"ingress", &b.IngressRate, &b.IngressBurst}, {"egress", &b.EgressRate, &b.EgressBurst}} {
		switch {
		case *d.rate < 0 || *d.burst < 0:
			return fmt.Errorf("%sRate %d, %sBurst %d: below zero", d.name, *d.rate, d.name, *d.burst)
		case *d.rate == 0 && *d.burst != 0:
			return fmt.Errorf("%sBurst needs %sRate", d.name, d.name)
		case *d.rate != 0 && *d.burst == 0:
			*d.burst = defaultBurst
		}
	}
	if b == (Bandwidth{}) {
		return fmt.Errorf("no rate is given")
	}
	s.Bandwidth = &b
	return nil
}

// label is an RFC 1123 label, and dnsName a sequence of them: the forms of
// names of Kubernetes objects.
var (
	label   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

func namespaceName(name string) (string, error) {
	if !label.MatchString(name) {
		return "", fmt.Errorf("%s is no name of a namespace (lower-case letters, digits and '-')", quote(name))
	}
	return name, nil
}

func objectName(name string) bool { return len(name) <= 253 && dnsName.MatchString(name) }

func definitionName(name string) error {
	if name == "" {
		return fmt.Errorf("the name of the network is missing")
	}
	if !objectName(name) {
		return fmt.Errorf("%s is no name of a network (lower-case letters, digits, '-' and '.')", quote(name))
	}
	return nil
}

// interfaceName verifies the name of a new link. Beyond the kernel's own rules
// (dev_valid_name) it refuses names that mean something else to the kernel: a
// '%' makes it a pattern, "all" and "default" have no sysctls of their own, and
// "lo" exists in every namespace.
func interfaceName(name string) (string, error) {
	const most = 15 // IFNAMSIZ less the terminating zero
	switch {
	case name == "":
		return "", fmt.Errorf("the interface name is empty")
	case len(name) > most:
		return "", fmt.Errorf("interface name %s has %d bytes; Linux allows %d", quote(name), len(name), most)
	case name == "." || name == ".." || name == "lo" || name == "all" || name == "default":
		return "", fmt.Errorf("interface name %s is reserved", quote(name))
	case !utf8.ValidString(name) || strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, notInName):
		return "", fmt.Errorf("interface name %s: a slash, a colon, '%%', white space and control characters are not allowed", quote(name))
	}
	return name, nil
}

func notInName(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
