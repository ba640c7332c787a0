package driver_test

import (
	"context"
	"errors"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
)

// delegate does what add does.
type delegate struct {
	add func() (*current.Result, error)
}

func (d delegate) Add(context.Context) (*current.Result, error) { return d.add() }
func (delegate) Del(context.Context) error                      { return nil }
func (delegate) Check(context.Context) error                    { return nil }

type detached struct{ delegate }

func (detached) Detached() {}

func TestADelegateThatNeedsNoLinkIsAskedAhead(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	want := &current.Result{CNIVersion: "1.1.0"}
	s := driver.Spec{IPAM: detached{delegate{func() (*current.Result, error) {
		close(asked)
		<-answer
		return want, nil
	}}}}
	a := s.AskAhead(t.Context())
	<-asked // with nobody waiting for the result
	close(answer)
	for range 2 { // asking twice would close asked again
		if got, err := a.Result(); got != want || err != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

func TestADelegateThatMayNeedTheLinkIsAskedWhenItsResultIs(t *testing.T) {
	times := 0
	broken := errors.New("broken")
	s := driver.Spec{IPAM: delegate{func() (*current.Result, error) {
		times++
		return nil, broken
	}}}
	a := s.AskAhead(t.Context())
	a.Wait()
	if times != 0 {
		t.Errorf("it was asked before the link was there")
	}
	if _, err := a.Result(); !errors.Is(err, broken) || times != 1 {
		t.Errorf("asked %d times: %v", times, err)
	}
}

func TestAPanicOfADelegateIsThatOfTheCaller(t *testing.T) {
	a := driver.Spec{IPAM: detached{delegate{func() (*current.Result, error) { panic("of the delegate") }}}}.AskAhead(t.Context())
	a.Wait()
	defer func() {
		if v := recover(); v != "of the delegate" {
			t.Errorf("the caller panics with %v", v)
		}
	}()
	_, _ = a.Result()
}
