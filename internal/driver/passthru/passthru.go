// Package passthru attaches nothing: a network that names it is a place for
// the plugins that stand behind it in the chain. It does what the plugin of
// that name does that comes with Multus.
package passthru

import (
	"context"
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

// New returns the driver for plugin type "passthru".
func New() driver.Driver { return passthru{} }

type passthru struct{}

// Attach implements driver.Driver. It hands on the result of the plugins before
// it; where it is the first, that is an empty one. It asks nobody for addresses,
// because there would be no interface to have them.
func (passthru) Attach(_ context.Context, s driver.Spec) (*current.Result, error) {
	if err := s.ValidIfName(); err != nil {
		return nil, err
	}
	var c types.NetConf
	if err := json.Unmarshal(s.Conf, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read passthru configuration", err.Error())
	}
	if s.Prev != nil {
		return s.Prev, nil
	}
	return &current.Result{CNIVersion: current.ImplementedSpecVersion}, nil
}

// Detach implements driver.Driver.
func (passthru) Detach(context.Context, driver.Spec) error { return nil }

// Check implements driver.Driver.
func (passthru) Check(context.Context, driver.Spec) error { return nil }
