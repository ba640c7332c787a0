package kube

import (
	"context"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The lease of the leader. Another daemon leads leaseDuration after the leader
// was last heard of; the leader itself stops renewDeadline after it could last
// renew, which is before that.
const (
	leaseNamespace = "braid-system"
	leaseName      = "braid-migrate"

	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Lead has this daemon stand for leader until ctx ends, again and again, and
// runs lead whenever it is. The context of lead ends as soon as the lease is
// lost, or is seen to be another's; the next term begins after lead has returned. When ctx
// ends, the lease is given up once lead has returned, so that another daemon
// need not wait for it to expire.
func (m *Migrations) Lead(ctx context.Context, lead func(context.Context)) {
	for ctx.Err() == nil {
		m.term(ctx, lead)
		pause(ctx, retryPeriod)
	}
}

// term stands for leader once, until a lease that was won is lost.
func (m *Migrations) term(ctx context.Context, lead func(context.Context)) {
	// The lease is renewed for as long as lead runs, also when ctx has ended.
	renewing, stopRenewing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRenewing()
	leading, stopLeading := context.WithCancel(ctx)
	defer stopLeading()
	lock := &watchedLock{
		Interface: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: leaseName},
			Client:    m.leases,
			// Two daemons of one node, as in a rollout, are two.
			LockConfig: resourcelock.ResourceLockConfig{Identity: m.node + "_" + string(uuid.NewUUID())},
		},
		lost: stopLeading,
	}
	var mu sync.Mutex
	var over bool           // whether the term is, and lead must not begin any more
	var ended chan struct{} // closed when lead has returned; nil until it begins
	defer context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if ended == nil { // nobody would stop it
			over = true
			stopRenewing()
		}
	})()
	begin := func(leaseHeld context.Context) {
		mu.Lock()
		if over {
			mu.Unlock()
			return
		}
		ended = make(chan struct{})
		mu.Unlock()
		defer close(ended)
		defer stopRenewing()
		defer context.AfterFunc(leaseHeld, stopLeading)()
		m.log.Info("leading the migration", "node", m.node)
		lead(leading)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name:          leaseName,
		Lock:          lock,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		// Not ReleaseOnCancel: it keeps a lost lease's context alive while it tries
		// to write to an API server that is away, and gives up a lease while lead
		// still runs.
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: begin,
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		m.log.Error("leader election", "err", err) // the durations above contradict each other
		return
	}
	elector.Run(renewing)
	stopLeading()
	mu.Lock()
	over = true
	mu.Unlock()
	if ended == nil {
		return
	}
	<-ended
	m.log.Info("leading the migration no more", "node", m.node)
	if elector.IsLeader() {
		m.release(context.WithoutCancel(ctx), lock)
	}
}

// release gives up a lease that is still this daemon's.
func (m *Migrations) release(ctx context.Context, lock *watchedLock) {
	ctx, cancel := context.WithTimeout(ctx, retryPeriod)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err == nil && record.HolderIdentity == lock.Identity() {
		now := metav1.Now()
		err = lock.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaderTransitions:    record.LeaderTransitions,
			LeaseDurationSeconds: 1,
			AcquireTime:          now,
			RenewTime:            now,
		})
	}
	if err != nil {
		m.log.Warn("the lease of the migration's leader is left to expire", "err", err)
	}
}

// Leader returns the node of the daemon that leads, as the lease has it; empty
// when nobody does.
func (m *Migrations) Leader(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	lease, err := m.leases.Leases(leaseNamespace).Get(ctx, leaseName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == nil {
		return "", nil
	}
	node, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return node, nil
}

// watchedLock calls lost as soon as it sees the lease with somebody else. The
// elector would try on until the renew deadline.
type watchedLock struct {
	resourcelock.Interface
	lost func()

	mu   sync.Mutex
	held bool
}

func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.held && record.HolderIdentity != l.Identity() {
		l.lost()
	}
	return record, raw, err
}

func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Create(ctx, record))
}

func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.note(l.Interface.Update(ctx, record))
}

func (l *watchedLock) note(err error) error {
	if err == nil {
		l.mu.Lock()
		l.held = true
		l.mu.Unlock()
	}
	return err
}
