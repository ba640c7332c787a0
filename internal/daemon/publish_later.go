package daemon

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/status"
)

const (
	// tellQuiet is how long no ADD may have ended before the statuses that none of
	// them waited for are written, and tellLatest how long that is waited for: a
	// burst of pods starts first.
	tellQuiet, tellLatest = 100 * time.Millisecond, time.Second
	// tellAtOnce is how many of them are written at once.
	tellAtOnce = 4
	// tellQueue is how many may wait, well above the pods of a node.
	tellQueue = 1024
	// tellLast is how long a daemon that ends goes on writing them: the next one
	// may first have to be fetched.
	tellLast = 3 * time.Second
)

// untold is a sandbox whose ADD did not wait for its network status.
type untold struct {
	containerID, ifName string
	pod                 plan.Pod
	done                []attach.Attached
}

// tellLater leaves the network status and the events of a sandbox to tellLoop, or
// when too many wait already, the status to converge.
func (d *Daemon) tellLater(u untold) {
	if d.Cluster == nil {
		return
	}
	d.telling.Add(1) // before anybody can be done with it
	select {
	case d.untold <- u:
	default:
		d.telling.Add(-1)
		d.late.poke()
	}
}

// Untold is how many sandboxes wait for their network status to be written, which
// no ADD waits for.
func (d *Daemon) Untold() int { return int(d.telling.Load()) }

// tellLoop writes the network statuses that no ADD waits for. What it leaves at
// its end is seen by the next daemon's converge.
func (d *Daemon) tellLoop(ctx context.Context) error {
	if d.WaitForStatus {
		return nil
	}
	for {
		d.tellAll(ctx, d.nextUntold(ctx))
		if ctx.Err() != nil {
			return nil
		}
	}
}

// tellAll writes the network statuses of a burst, also the last one before ctx
// ended.
func (d *Daemon) tellAll(ctx context.Context, burst []untold) {
	ctx, cancel := outlast(ctx, tellLast)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(tellAtOnce)
	for _, u := range burst {
		group.Go(func() error {
			defer d.telling.Add(-1)
			d.tellUntold(ctx, u)
			d.added(u.pod, u.done)
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

// outlast is a context that ends some time after ctx.
func outlast(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, func() { stop(); cancel() }
}

// nextUntold waits for the end of the next burst of ADDs, or of ctx: then it is
// all that wait.
func (d *Daemon) nextUntold(ctx context.Context) (burst []untold) {
	var quiet, latest <-chan time.Time // never, until there is one
	for {
		select {
		case u := <-d.untold:
			if burst = append(burst, u); len(burst) == 1 {
				latest = time.After(tellLatest)
			}
			quiet = time.After(tellQuiet)
		case <-quiet:
			return burst
		case <-latest:
			return burst
		case <-ctx.Done():
			for range len(d.untold) {
				burst = append(burst, <-d.untold)
			}
			return burst
		}
	}
}

// tellUntold writes the network status of a sandbox until it is what the records
// say: whoever changes them meanwhile writes it as well, and may be overtaken.
func (d *Daemon) tellUntold(ctx context.Context, u untold) {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	for pod := u.pod; ; {
		records, err := d.Records.Sandbox(u.containerID, u.ifName)
		text, due := "", false
		if err == nil {
			text, due, err = dueStatus(pod, records)
		}
		if due {
			err = d.setStatus(ctx, pod, text)
		}
		switch {
		case errors.Is(err, ErrGone):
			return
		case err != nil:
			d.Log.Warn("the network status could not be written and is tried again", "pod", podName(pod), "err", err)
			d.late.poke()
			return
		case !due:
			return
		}
		pod.Annotations = map[string]string{status.Annotation: text} // no other counts here
	}
}
