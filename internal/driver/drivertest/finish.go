package drivertest

import (
	"context"
	"errors"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

// Finishing is d with a Finish right after each Attach.
func Finishing(d driver.Driver) driver.Driver {
	switch f := d.(type) {
	case interface {
		driver.Finisher
		driver.Foreteller
	}:
		return foretelling{atOnce{f}, f}
	case driver.Finisher:
		return atOnce{f}
	}
	return d
}

type atOnce struct{ driver.Finisher }

// Attach implements driver.Driver.
func (d atOnce) Attach(ctx context.Context, s driver.Spec) (*current.Result, error) {
	res, err := d.Finisher.Attach(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := d.Finish(ctx, s, res); err != nil {
		s.Prev = res
		return nil, errors.Join(err, d.Detach(context.WithoutCancel(ctx), s))
	}
	return res, nil
}

// foretelling is one of which the result can be foretold.
type foretelling struct {
	atOnce
	foreteller driver.Foreteller
}

// Foretell implements driver.Foreteller.
func (d foretelling) Foretell(ctx context.Context, s driver.Spec) (*current.Result, error) {
	return d.foreteller.Foretell(ctx, s)
}
