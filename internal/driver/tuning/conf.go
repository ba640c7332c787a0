package tuning

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/ipam/request"
	"braid.dev/braid/internal/rtnl"
)

// conf is the configuration. The README says what each key means.
type conf struct {
	Name    string `json:"name"`
	DataDir string `json:"dataDir"`
	settings
	Args struct {
		CNI settings `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	mac     net.HardwareAddr
	sysctls []sysctl // in the order of their keys
}

// settings can be given in the configuration and, for one container, in
// args.cni.
type settings struct {
	Sysctls  map[string]string `json:"sysctl"`
	MAC      *string           `json:"mac"`
	Promisc  *bool             `json:"promisc"`
	MTU      *int              `json:"mtu"`
	AllMulti *bool             `json:"allmulti"`
	TxQLen   *int              `json:"txQLen"`
}

// sysctl is one setting, by the key that the configuration has.
type sysctl struct {
	key string
	rtnl.Setting
}

// parse reads and validates everything that can be judged without looking at
// the node.
func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read tuning configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	if err := uniqueSysctls(s.Conf); err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	c.override(c.Args.CNI)
	if err := c.pickMAC(s.Args); err != nil {
		return c, err
	}
	err := c.resolveSysctls(s.IfName)
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return c, nil
}

// override puts what args.cni says in the place of what the configuration says.
func (c *conf) override(own settings) {
	if len(own.Sysctls) > 0 && c.Sysctls == nil {
		c.Sysctls = map[string]string{}
	}
	maps.Copy(c.Sysctls, own.Sysctls)
	pick(&c.Promisc, own.Promisc)
	pick(&c.MTU, own.MTU)
	pick(&c.AllMulti, own.AllMulti)
	pick(&c.TxQLen, own.TxQLen)
}

func pick[T any](to **T, own *T) {
	if own != nil {
		*to = own
	}
}

// pickMAC decides between the four places that a MAC can come from.
func (c *conf) pickMAC(env string) error {
	asked := request.Args(env)["MAC"]
	var text string
	for _, from := range []*string{c.MAC, &asked, &c.RuntimeConfig.MAC, c.Args.CNI.MAC} {
		if from != nil && *from != "" {
			text = *from
		}
	}
	if text == "" {
		return nil
	}
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac %q is not six bytes such as 02:00:00:00:00:01", text), "")
	}
	if mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mac %s is not the address of one interface: it is zero or its first byte is odd", text), "")
	}
	c.mac = mac
	return nil
}

func (c *conf) validate() error {
	switch {
	case c.mtu() != 0 && (c.mtu() < 68 || c.mtu() > 65536):
		return fmt.Errorf("mtu %d is not between 68 and 65536", c.mtu())
	case c.TxQLen != nil && *c.TxQLen < 0:
		return fmt.Errorf("txQLen %d is negative", *c.TxQLen)
	case c.DataDir != "" && !path.IsAbs(c.DataDir):
		return fmt.Errorf("dataDir %q is no absolute path", c.DataDir)
	}
	return nil
}

// mtu is 0 when none is asked for.
func (c *conf) mtu() int {
	if c.MTU == nil {
		return 0
	}
	return *c.MTU
}

// promisc is asked for by true only: false says nothing.
func (c *conf) promisc() bool { return c.Promisc != nil && *c.Promisc }

// changesLink says that the link itself is changed, and not only sysctls.
func (c *conf) changesLink() bool {
	return c.mac != nil || c.promisc() || c.mtu() != 0 || c.AllMulti != nil || c.TxQLen != nil
}

// resolveSysctls finds the file of every key, below /proc/sys/net.
func (c *conf) resolveSysctls(ifName string) error {
	seen := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(c.Sysctls)) {
		file, err := sysctlFile(key, ifName)
		if err != nil {
			return err
		}
		if other, ok := seen[file]; ok {
			return fmt.Errorf("sysctl %s and %s are the same setting", other, key)
		}
		seen[file] = key
		c.sysctls = append(c.sysctls, sysctl{key, rtnl.Setting{Path: file, Value: c.Sysctls[key]}})
	}
	return nil
}

// sysctlFile returns the path of a key below /proc/sys/net. Dots separate as
// slashes do; IFNAME stands for the interface, whose name keeps its dots.
func sysctlFile(key, ifName string) (string, error) {
	file := strings.Replace(strings.ReplaceAll(key, ".", "/"), "IFNAME", ifName, 1)
	rest, ok := strings.CutPrefix(path.Join("/", file), "/net/")
	if !ok {
		return "", fmt.Errorf("sysctl %q is none of the network: its name does not begin with net", key)
	}
	return rest, nil
}

// uniqueSysctls refuses a key that stands there twice, of which one would be
// ignored.
func uniqueSysctls(text []byte) error {
	var c struct {
		Sysctl json.RawMessage `json:"sysctl"`
	}
	if err := json.Unmarshal(text, &c); err != nil || len(c.Sysctl) == 0 {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(c.Sysctl))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return err // null
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if _, err := d.Token(); err != nil { // its value, a string
			return err
		}
		if name, ok := key.(string); ok && seen[name] {
			return fmt.Errorf("sysctl %s is given twice", name)
		} else if ok {
			seen[name] = true
		}
	}
	return nil
}

// allowed says whether the node's administrator allows every sysctl. The list
// has one regular expression in each line, of which one must match somewhere
// in the key as the configuration has it.
func allowed(sysctls []sysctl, list string) error {
	var patterns []*regexp.Regexp
	for line := range strings.Lines(list) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := regexp.Compile(line)
		if err != nil {
			return fmt.Errorf("pattern %q: %w", line, err)
		}
		patterns = append(patterns, p)
	}
	var refused []string
	for _, s := range sysctls {
		if !slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(s.key) }) {
			refused = append(refused, s.key)
		}
	}
	if len(refused) > 0 {
		return errors.New("it does not allow sysctl " + strings.Join(refused, ", "))
	}
	return nil
}
