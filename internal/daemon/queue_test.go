package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

// lineUp starts a request that waits for its turn and returns once it stands
// in line.
func lineUp(q *queue, ctx context.Context, id string, turn func(leave func(), err error)) {
	q.mu.Lock()
	before := len(q.waiting[id])
	q.mu.Unlock()
	go func() { turn(q.enter(ctx, id)) }()
	for {
		q.mu.Lock()
		now := len(q.waiting[id])
		q.mu.Unlock()
		if now > before {
			return
		}
		runtime.Gosched()
	}
}

func TestSpec39RequestsOfOneContainerTakeTurnsInOrder(t *testing.T) {
	var q queue
	ctx := context.Background()
	leave, err := q.enter(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	var order []int // whoever has the turn writes
	var done sync.WaitGroup
	done.Add(n)
	for i := range n {
		lineUp(&q, ctx, "c", func(leave func(), err error) {
			defer done.Done()
			if err != nil {
				t.Error(err)
				return
			}
			order = append(order, i)
			leave()
		})
	}
	other, err := q.enter(ctx, "d")
	if err != nil {
		t.Fatal("another container has to wait")
	}
	other()
	leave()
	done.Wait()
	for i, got := range order {
		if got != i {
			t.Fatalf("order %v", order)
		}
	}
	if q.busy("c") || len(q.waiting) != 0 {
		t.Errorf("left in the queue: %v", q.waiting)
	}
}

func TestWhoeverGivesUpLeavesTheLine(t *testing.T) {
	var q queue
	leave, err := q.enter(context.Background(), "c")
	if err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancelCause(context.Background())
	gaveUp, served := make(chan error, 1), make(chan error, 1)
	lineUp(&q, impatient, "c", func(_ func(), err error) { gaveUp <- err })
	lineUp(&q, context.Background(), "c", func(leave func(), err error) {
		if err == nil {
			leave()
		}
		served <- err
	})
	why := errors.New("shim is gone")
	cancel(why)
	if err := <-gaveUp; !errors.Is(err, why) {
		t.Errorf("enter = %v", err)
	}
	leave()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestQueueUnderRandomCancellation(t *testing.T) {
	var q queue
	var inside [3]int
	var done sync.WaitGroup
	for i := range 2000 {
		c := i % len(inside)
		ctx, cancel := context.WithCancel(context.Background())
		done.Go(func() {
			leave, err := q.enter(ctx, fmt.Sprint(c))
			if err != nil {
				return
			}
			inside[c]++
			if inside[c] != 1 {
				t.Error("two at once")
			}
			runtime.Gosched()
			inside[c]--
			leave()
		})
		done.Go(func() {
			for range rand.N(20) {
				runtime.Gosched()
			}
			cancel()
		})
	}
	done.Wait()
	if len(q.waiting) != 0 {
		t.Errorf("left in the queue: %v", q.waiting)
	}
}

func TestRecentForgetsTheOldest(t *testing.T) {
	var r recent
	for i := range 2 * recentSize {
		r.add(fmt.Sprint(i))
	}
	if r.has("0") || !r.has(fmt.Sprint(2*recentSize-1)) || !r.has(fmt.Sprint(recentSize)) || len(r.known) != recentSize {
		t.Errorf("%d known", len(r.known))
	}
	r.forget(fmt.Sprint(recentSize))
	if r.has(fmt.Sprint(recentSize)) {
		t.Error("it was told to forget")
	}
}
