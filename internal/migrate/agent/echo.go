package agent

import (
	"context"
	"slices"
	"sync"
)

// echo is what answers other nodes while they ask about the ways between them.
type echo struct {
	ports   []int32
	stop    context.CancelFunc
	serving sync.WaitGroup
}

// answer serves the ports that are asked for, and no others. A port that is
// taken is somebody's who answers or not: that is what is asked about.
func (r *round) answer(ctx context.Context) {
	var want []int32
	if r.spec.Paths != nil {
		want = r.spec.Paths.Ports
	}
	e := &r.Agent.echo
	if slices.Equal(want, e.ports) {
		return
	}
	e.end()
	if len(want) == 0 {
		return
	}
	ctx, e.stop = context.WithCancel(ctx)
	e.ports = slices.Clone(want)
	for _, port := range want {
		e.serving.Go(func() {
			if err := r.CNI.Echo(ctx, uint16(port)); err != nil {
				r.Log.Info("other nodes get no answer", "port", port, "err", err)
			}
		})
	}
}

// end gives the ports back.
func (e *echo) end() {
	if e.stop != nil {
		e.stop()
	}
	e.serving.Wait()
	e.ports, e.stop = nil, nil
}
