package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Plan is what one pod will get: its default network first, then the further
// networks that every pod of the node gets, then those it asked for, in the
// order it asked for them.
type Plan struct {
	Pod         Pod          `json:"pod"`
	Attachments []Attachment `json:"attachments"`
}

// defaultNetworkNamespace is where Multus looks a default network up that the
// pod's annotation names without a namespace.
const defaultNetworkNamespace = "kube-system"

// Build decides what in.Pod gets: all of it or, with the first thing that
// cannot be given, an *Error. The same input gives the same plan.
func Build(in Input) (Plan, error) {
	first, err := defaultAttachment(in)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Pod: in.Pod, Attachments: []Attachment{first}}
	beside, err := besideAttachments(in)
	if err != nil {
		return Plan{}, err
	}
	p.Attachments = append(p.Attachments, beside...)
	selections, err := in.asked()
	if err != nil {
		return Plan{}, err
	}
	taken := owners(p.Attachments)
	for i, s := range selections {
		place := i + 1
		a, err := in.selected(element{
			Selection: s, place: place,
			free: fmt.Sprintf("net%d", place), why: fmt.Sprintf("number %d of the networks the pod asked for", place),
		}, taken)
		if err != nil {
			return Plan{}, err
		}
		p.Attachments = append(p.Attachments, a)
		if err := bounded(p.Attachments); err != nil {
			return Plan{}, err
		}
	}
	if err := assignDevices(in, nil, p.Attachments); err != nil {
		return Plan{}, err
	}
	said := foresee(p.Attachments)
	if err := decideRoutes(p.Attachments, said); err != nil {
		return Plan{}, err
	}
	explainOverlaps(p.Attachments, said)
	return p, nil
}

// maxPlan bounds the configurations of all networks of a pod together, in
// bytes: each is read several times, and recorded.
const maxPlan = 512 << 10

// bounded refuses more than fits. It is asked after each network, so that
// nothing beyond it is read.
func bounded(list []Attachment) error {
	size := 0
	for _, a := range list {
		for _, p := range a.Config.Plugins {
			size += len(p.Conf)
		}
	}
	if size > maxPlan {
		last := list[len(list)-1]
		return about(last.Network, fmt.Errorf("the configurations of the pod's networks, up to %s, have %d bytes; %d are allowed", last.IfName, size, maxPlan))
	}
	return nil
}

// asked are the networks that the pod asks for, each with its namespace.
func (in Input) asked() ([]Selection, error) {
	selections, err := ParseNetworks(in.Pod.Annotations[NetworksAnnotation])
	if err != nil {
		return nil, invalid("annotation %s: %w", NetworksAnnotation, err)
	}
	for i := range selections {
		if selections[i].Namespace == "" {
			selections[i].Namespace = in.Pod.Namespace
		}
	}
	return selections, nil
}

// owners says of each interface name whose it is.
func owners(list []Attachment) map[string]string {
	taken := map[string]string{}
	for _, a := range list {
		switch {
		case a.Default:
			taken[a.IfName] = "the default network"
		case !a.isAsked():
			taken[a.IfName] = "network " + a.Network + " of the conf dir"
		default:
			taken[a.IfName] = "network " + a.Network
		}
	}
	return taken
}

// element is one of the networks annotation.
type element struct {
	Selection
	// place is counted from 1.
	place int
	// free is the interface when the element names none, and why says how it
	// came to that.
	free, why string
}

// selected plans one element. What others have is taken, and so is then what
// it gets.
func (in Input) selected(e element, taken map[string]string) (Attachment, error) {
	a := Attachment{Network: e.Namespace + "/" + e.Name, IfName: e.IfName, Asked: &e.Selection}
	a.because("asked for by the pod: element %d of annotation %s", e.place, NetworksAnnotation)
	if a.IfName == "" {
		a.IfName = e.free
		a.because("interface %s: %s", a.IfName, e.why)
	} else {
		a.because("interface %s: the pod's choice", a.IfName)
	}
	if owner, clash := taken[a.IfName]; clash {
		return a, about(a.Network, fmt.Errorf("element %d: interface %s already belongs to %s; choose another one with \"interface\" or @", e.place, a.IfName, owner))
	}
	taken[a.IfName] = fmt.Sprintf("element %d (%s)", e.place, a.Network)
	if err := a.configure(in, e.Selection); err != nil {
		return a, about(a.Network, fmt.Errorf("element %d: %w", e.place, err))
	}
	return a, nil
}

// defaultAttachment plans the pod's default network, which every pod has and
// has first (NPWG specification 1.3, section 7.1).
func defaultAttachment(in Input) (Attachment, error) {
	if _, err := interfaceName(in.IfName); err != nil {
		return Attachment{}, &Error{Code: types.ErrInvalidEnvironmentVariables, Err: fmt.Errorf("CNI_IFNAME: %w", err)}
	}
	a := Attachment{
		Network:       in.Default.Name,
		IfName:        in.IfName,
		Default:       true,
		Config:        in.Default,
		RuntimeConfig: maps.Clone(in.RuntimeConfig),
	}
	annotation := in.Pod.Annotations[DefaultNetworkAnnotation]
	if annotation == "" {
		if len(in.Default.Plugins) == 0 {
			return Attachment{}, later("there is no default network yet")
		}
		a.because("default network of the node")
		if err := a.expand(in); err != nil {
			return Attachment{}, about(a.Network, err)
		}
		return a, nil
	}
	selections, err := parseSelections(annotation)
	if err == nil && len(selections) != 1 {
		err = fmt.Errorf("exactly one network is wanted, not %d", len(selections))
	}
	if err != nil {
		return Attachment{}, invalid("annotation %s: %w", DefaultNetworkAnnotation, err)
	}
	s := selections[0]
	if s.Namespace == "" {
		s.Namespace = defaultNetworkNamespace
	}
	a.Network = s.Namespace + "/" + s.Name
	a.because("default network of the pod instead of %s: annotation %s", in.Default.Name, DefaultNetworkAnnotation)
	if s.IfName != "" && s.IfName != in.IfName {
		return Attachment{}, about(a.Network, fmt.Errorf("interface %s: the runtime wants the default network as %s", s.IfName, in.IfName))
	}
	if err := a.configure(in, s); err != nil {
		return Attachment{}, about(a.Network, err)
	}
	return a, nil
}

// besideAttachments plans the networks of the conf dir that every pod gets
// beside its default one: all of them or, while one is missing, none.
func besideAttachments(in Input) ([]Attachment, error) {
	more := in.ConfDirNetworks - 1
	if more <= 0 {
		return nil, nil
	}
	if have := len(in.Beside); have < more {
		return nil, later("every pod gets the first %d networks of the conf dir (confDirNetworks), and it has %d", in.ConfDirNetworks, have+1)
	}
	var list []Attachment
	for i, n := range in.Beside[:more] {
		a := Attachment{Network: n.Name, IfName: ConfDirIfName(in.IfName, i+1), Config: n}
		a.because("network %d of the conf dir, of which every pod gets the first %d (confDirNetworks)", i+2, in.ConfDirNetworks)
		_, err := interfaceName(a.IfName)
		if err == nil {
			err = a.expand(in)
		}
		if err != nil {
			return nil, about(a.Network, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// ConfDirIfName is the interface of the i-th network of the conf dir, counted
// from 0, when that of the default network is first: eth0, eth1, eth2.
func ConfDirIfName(first string, i int) string {
	if i == 0 {
		return first
	}
	stem := strings.TrimRight(first, "0123456789")
	number, _ := strconv.Atoi(first[len(stem):]) // 0 without a number
	return stem + strconv.Itoa(number+i)
}

// configure finds the network that s selects and adds what s asks of it.
func (a *Attachment) configure(in Input, s Selection) (err error) {
	if a.Config, err = a.find(in, s); err != nil {
		return err
	}
	if err := a.expand(in); err != nil {
		return err
	}
	a.Claim = s.DefaultRoute
	return a.ask(s)
}

// find looks the configuration up in the order of the NPWG specification 1.3,
// section 3.4: spec.config, then the conf dir.
func (a *Attachment) find(in Input, s Selection) (Network, error) {
	if err := in.Isolation.permits(in.Pod.Namespace, s.Namespace); err != nil {
		return Network{}, err
	}
	d, ok := Definition{}, false
	if in.Definition != nil {
		d, ok = in.Definition(s.Namespace, s.Name)
	}
	if !ok {
		return Network{}, later("there is no NetworkAttachmentDefinition %q in namespace %q", s.Name, s.Namespace)
	}
	a.Device.Resource = strings.TrimSpace(d.ResourceName)
	if strings.TrimSpace(d.Config) != "" {
		n, err := ParseNetwork([]byte(d.Config), s.Name)
		if err != nil {
			return Network{}, fmt.Errorf("spec.config: %w", err)
		}
		a.because("configuration: spec.config of NetworkAttachmentDefinition %s", a.Network)
		return n, nil
	}
	if in.OnDisk != nil {
		if n, ok := in.OnDisk(s.Name); ok {
			a.because("configuration: network %s of the conf dir, as NetworkAttachmentDefinition %s has none", s.Name, a.Network)
			return n, nil
		}
	}
	return Network{}, later("NetworkAttachmentDefinition %s has no spec.config, and the node's conf dir has no network named %q", a.Network, s.Name)
}

// foresee reads what the configurations say of addresses and routes, and fills
// in the addresses that they give away.
func foresee(list []Attachment) (said [][]routed) {
	for i := range list {
		a := &list[i]
		said = append(said, a.routed())
		if len(a.IPs) > 0 {
			continue
		}
		for j, p := range a.Config.Plugins {
			if p.IPAM == static {
				a.foresee(said[i][j])
			}
		}
	}
	return said
}

// foresee fills in the addresses of a static address delegate.
func (a *Attachment) foresee(said routed) {
	for _, addr := range said.IPAM.Addresses {
		if ip, _, err := address(addr.Address); err == nil { // the delegate refuses what it cannot read
			a.IPs = append(a.IPs, ip)
		}
	}
}

func (a *Attachment) because(format string, args ...any) {
	a.Reasons = append(a.Reasons, fmt.Sprintf(format, args...))
}

const (
	// static is the address delegate whose addresses are in its configuration.
	static = "static"
	// hostLocal is the one address delegate that reads a single address from
	// CNI_ARGS.
	hostLocal = "host-local"
)

// argsIPAM are the address delegates that read CNI_ARGS IP and args.cni.ips
// without the capability ips. People's manifests rely on it.
var argsIPAM = []string{static, hostLocal, "whereabouts"}

// argsMAC are the plugins that read CNI_ARGS MAC without the capability mac.
var argsMAC = []string{
	"bridge", "macvlan", "tap", "tuning", "sriov", "ovs",
	"macvtap", "accelerated-bridge", "cnv-bridge", "cnv-tuning",
}

// annotationReaders are plugins whose controllers read addresses and hardware
// address from the pod's annotation themselves.
var annotationReaders = []string{"ovn-k8s-cni-overlay"}

// ask passes what the pod asks for to the plugins: as runtimeConfig to those
// that declare the capability and, for addresses, in the older ways to those
// that are known to listen without declaring it. What no plugin would hear is
// refused (NPWG specification 1.3, section 4.1.2): the pod would run without.
func (a *Attachment) ask(s Selection) error {
	if err := a.askCNIArgs(s.CNIArgs); err != nil {
		return err
	}
	if err := a.askIPs(s.IPs); err != nil {
		return err
	}
	if err := a.askMAC(s.MAC); err != nil {
		return err
	}
	a.askDevice(s.DeviceID)
	a.askClaim(s.IPAMClaim)
	for _, r := range []struct {
		key, capability string
		asked           bool
		value           any
	}{
		{"portMappings", "portMappings", len(s.PortMappings) > 0, s.PortMappings},
		{"bandwidth", "bandwidth", s.Bandwidth != nil, s.Bandwidth},
		{"infiniband-guid", "infinibandGUID", s.InfinibandGUID != "", s.InfinibandGUID},
		{"deviceID", deviceCapability, s.DeviceID != "" && a.Device.Resource == "", s.DeviceID},
	} {
		if !r.asked {
			continue
		}
		if !a.declares(r.capability) {
			return fmt.Errorf("%s: no plugin of the network declares the capability %q", r.key, r.capability)
		}
		if err := a.setRuntimeConfig(r.capability, r.value); err != nil {
			return fmt.Errorf("%s: %w", r.key, err)
		}
		a.because("%s: the pod's choice, passed as runtimeConfig.%s", r.key, r.capability)
	}
	return nil
}

func (a *Attachment) askIPs(ips []string) error {
	if len(ips) == 0 {
		return nil
	}
	a.IPs = ips
	declared := a.declares("ips")
	known := func(p Plugin) bool { return slices.Contains(argsIPAM, p.IPAM) }
	listens := slices.ContainsFunc(a.Config.Plugins, known)
	if !declared && !listens && a.isRead() {
		a.because("addresses %s: the pod's choice, read from its annotation by the network itself", summary(ips))
		return nil
	}
	if !declared && !listens {
		return fmt.Errorf("ips: no plugin of the network declares the capability \"ips\" or has an ipam of type %s", strings.Join(argsIPAM, ", "))
	}
	var ways []string
	if declared {
		ways = append(ways, "runtimeConfig.ips")
		if err := a.setRuntimeConfig("ips", ips); err != nil {
			return err
		}
	}
	if listens {
		single := slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool { return p.IPAM == hostLocal })
		if len(ips) == 1 || !single {
			ways = append(ways, "CNI_ARGS IP")
			a.addCNIArg("IP", strings.Join(ips, ","))
		} else if undeclared := func(p Plugin) bool { return known(p) && !p.Capabilities["ips"] }; slices.ContainsFunc(a.Config.Plugins, undeclared) {
			ways = append(ways, "args.cni.ips")
			list, err := json.Marshal(ips)
			if err == nil {
				err = a.setArgs(undeclared, map[string]json.RawMessage{"ips": list})
			}
			if err != nil {
				return err
			}
		}
	}
	a.because("addresses %s: the pod's choice, passed as %s", summary(ips), strings.Join(ways, " and "))
	return nil
}

// isRead tells whether the network reads the pod's annotation itself.
func (a *Attachment) isRead() bool {
	return slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool { return slices.Contains(annotationReaders, p.Type) })
}

func (a *Attachment) askMAC(mac string) error {
	if mac == "" {
		return nil
	}
	a.MAC = mac
	declared := a.declares("mac")
	listens := slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool { return slices.Contains(argsMAC, p.Type) })
	if !declared && !listens && a.isRead() {
		a.because("hardware address %s: the pod's choice, read from its annotation by the network itself", mac)
		return nil
	}
	if !declared && !listens {
		return fmt.Errorf("mac: no plugin of the network declares the capability \"mac\" or is of type %s", strings.Join(argsMAC, ", "))
	}
	var ways []string
	if declared {
		ways = append(ways, "runtimeConfig.mac")
		if err := a.setRuntimeConfig("mac", mac); err != nil {
			return err
		}
	}
	if listens {
		ways = append(ways, "CNI_ARGS MAC")
		a.addCNIArg("MAC", mac)
	}
	a.because("hardware address %s: the pod's choice, passed as %s", mac, strings.Join(ways, " and "))
	return nil
}

// askDevice notes the device that the pod names. Of a network with a resource
// it is passed like one that the pod does not name.
func (a *Attachment) askDevice(id string) {
	a.Device.ID = id
}

// askClaim notes the IPAMClaim. The specification defines no way to pass it to
// a plugin: one that honours claims reads it from the pod's annotation.
func (a *Attachment) askClaim(name string) {
	if name == "" {
		return
	}
	a.IPAMClaim = name
	a.because("addresses: kept in IPAMClaim %s of the pod's namespace, by plugins that know of claims", name)
}

// askCNIArgs makes args the args.cni of every plugin, the pod's value before
// the definition's (NPWG specification 1.3, section 4.1.2.5).
func (a *Attachment) askCNIArgs(args map[string]json.RawMessage) error {
	if len(args) == 0 {
		return nil
	}
	if err := a.setArgs(func(Plugin) bool { return true }, args); err != nil {
		return fmt.Errorf("cni-args: %w", err)
	}
	a.because("cni-args %s: the pod's choice, passed as args.cni", summary(slices.Sorted(maps.Keys(args))))
	return nil
}

// summary shows the first of many.
func summary(list []string) string {
	const most = 16
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// setArgs writes values below args.cni of the plugins that match.
func (a *Attachment) setArgs(match func(Plugin) bool, values map[string]json.RawMessage) error {
	var set []member
	for _, key := range slices.Sorted(maps.Keys(values)) {
		set = append(set, member{key: key, value: values[key]})
	}
	return a.rewrite(func(p Plugin) (json.RawMessage, error) {
		if !match(p) {
			return p.Conf, nil
		}
		return withArgs(p.Conf, set)
	})
}

// rewrite changes the configurations of the plugins. The network may be shared
// with other plans, so its chain is not changed in place.
func (a *Attachment) rewrite(change func(Plugin) (json.RawMessage, error)) (err error) {
	a.Config.Plugins = slices.Clone(a.Config.Plugins)
	for i, p := range a.Config.Plugins {
		if a.Config.Plugins[i].Conf, err = change(p); err != nil {
			return fmt.Errorf("plugin %s: %w", p.Type, err)
		}
	}
	return nil
}

// withArgs returns conf with values below args.cni and everything else as its
// author wrote it.
func withArgs(conf json.RawMessage, values []member) (json.RawMessage, error) {
	args, err := objectAt(conf, "args")
	if err != nil {
		return nil, err
	}
	cni, err := objectAt(args, "cni")
	if err != nil {
		return nil, fmt.Errorf("args: %w", err)
	}
	if cni, err = setMembers(cni, values); err != nil {
		return nil, fmt.Errorf("args: cni: %w", err)
	}
	if args, err = setMember(args, "cni", cni); err != nil {
		return nil, err
	}
	return setMember(conf, "args", args)
}

// objectAt returns the object that a key of an object holds, or an empty one.
func objectAt(object json.RawMessage, key string) (json.RawMessage, error) {
	ms, err := members(object)
	if err != nil {
		return nil, err
	}
	return objectIn(ms, key)
}

// objectIn is objectAt for an object that is split already.
func objectIn(ms []member, key string) (json.RawMessage, error) {
	value, _ := lookup(ms, key)
	if isNull(value) {
		return json.RawMessage(`{}`), nil
	}
	if kind(value) != "an object" {
		return nil, fmt.Errorf("%s: want an object, have %s", key, kind(value))
	}
	return value, nil
}

func (a *Attachment) declares(capability string) bool {
	return slices.ContainsFunc(a.Config.Plugins, func(p Plugin) bool { return p.Capabilities[capability] })
}

func (a *Attachment) setRuntimeConfig(capability string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if a.RuntimeConfig == nil {
		a.RuntimeConfig = map[string]json.RawMessage{}
	}
	a.RuntimeConfig[capability] = text
	return nil
}

func (a *Attachment) addCNIArg(key, value string) {
	if a.CNIArgs != "" {
		a.CNIArgs += ";"
	}
	a.CNIArgs += key + "=" + value
}
