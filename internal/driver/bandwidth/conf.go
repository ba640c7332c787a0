package bandwidth

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

// latencyMillis is how long a frame may wait for its turn: the reference
// plugin's choice, which its CHECK compares.
const latencyMillis = 25

// conf is the configuration. The README says what each key means.
type conf struct {
	Name string `json:"name"`
	limits
	RuntimeConfig struct {
		Bandwidth limits `json:"bandwidth"`
	} `json:"runtimeConfig"`

	// ingress is what the container receives, egress what it sends; nil where
	// there is no limit.
	ingress, egress *rtnl.TBF
}

// limits are in bits per second, and bits. The keys are pointers because any
// of them in the configuration, also a zero, outweighs the runtime's.
type limits struct {
	IngressRate  *uint64 `json:"ingressRate"`
	IngressBurst *uint64 `json:"ingressBurst"`
	EgressRate   *uint64 `json:"egressRate"`
	EgressBurst  *uint64 `json:"egressBurst"`
}

// parse reads and validates everything that can be judged without looking at
// the node.
func parse(s driver.Spec) (conf, error) {
	var c conf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read bandwidth configuration", err.Error())
	}
	if err := s.ValidIfName(); err != nil {
		return c, err
	}
	l := c.limits
	if l == (limits{}) {
		l = c.RuntimeConfig.Bandwidth
	}
	var err error
	if c.ingress, err = filter("ingress", l.IngressRate, l.IngressBurst); err == nil {
		c.egress, err = filter("egress", l.EgressRate, l.EgressBurst)
	}
	if err != nil {
		return c, types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return c, nil
}

// unlimited says that there is nothing to do.
func (c conf) unlimited() bool { return c.ingress == nil && c.egress == nil }

// filter converts from bits, returning nil for no limit.
func filter(direction string, ratePtr, burstPtr *uint64) (*rtnl.TBF, error) {
	rate, burst := value(ratePtr), value(burstPtr)
	switch {
	case rate == 0 && burst == 0:
		return nil, nil
	case rate == 0 || burst == 0:
		return nil, fmt.Errorf("%sRate is %d and %sBurst is %d: they go together", direction, rate, direction, burst)
	case rate < 8 || burst < 8:
		return nil, fmt.Errorf("%sRate is %d and %sBurst is %d: neither may be less than one byte, 8 bits", direction, rate, direction, burst)
	case burst/8 >= math.MaxUint32:
		return nil, fmt.Errorf("%sBurst %d is more than 4 GB", direction, burst)
	}
	return &rtnl.TBF{Rate: rate / 8, Burst: burst / 8, LatencyMillis: latencyMillis}, nil
}

func value(p *uint64) uint64 {
	if p == nil {
		return 0
	}
	return *p
}
