package passthru_test

import (
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/driver/drivertest"
	"braid.dev/braid/internal/driver/passthru"
)

func spec() driver.Spec {
	return driver.Spec{ContainerID: "c", IfName: "net1", Conf: []byte(`{"cniVersion":"1.0.0","name":"n","type":"passthru","ipam":{"type":"static"}}`)}
}

func TestAloneItsResultIsEmpty(t *testing.T) {
	res, err := passthru.New().Attach(t.Context(), spec())
	if err != nil || len(res.Interfaces)+len(res.IPs)+len(res.Routes) != 0 {
		t.Errorf("Attach = %+v, %v", res, err)
	}
}

func TestBehindOthersTheirResultIsHandedOn(t *testing.T) {
	s := spec()
	s.Prev = &current.Result{Interfaces: []*current.Interface{{Name: "net1"}}}
	res, err := passthru.New().Attach(t.Context(), s)
	if err != nil || len(res.Interfaces) != 1 || res.Interfaces[0].Name != "net1" {
		t.Errorf("Attach = %+v, %v", res, err)
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	s := spec()
	s.Conf = []byte(`{"name":7}`)
	_, err := passthru.New().Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrDecodingFailure, "name")
	s = spec()
	s.IfName = "a/b"
	_, err = passthru.New().Attach(t.Context(), s)
	drivertest.WantError(t, err, types.ErrInvalidEnvironmentVariables, `"a/b"`)
}

func TestDetachAndCheckNeedNothing(t *testing.T) {
	d, s := passthru.New(), driver.Spec{}
	if err := d.Detach(t.Context(), s); err != nil {
		t.Error(err)
	}
	if err := d.Check(t.Context(), s); err != nil {
		t.Error(err)
	}
}
