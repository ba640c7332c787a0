// Package kube is the only door to the Kubernetes API: the pods of this node,
// all network definitions, a pod's network-status annotation, the events of pods
// and of the node, and what DRA drivers publish of devices.
//
// Reading is served from memory and follows the API by watches. A missing
// NetworkAttachmentDefinition CRD counts as "no definitions", and an API that
// cannot be reached leaves what is known in place.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ErrNotFound says that the API knows no such object. Every other error means
// that the API could not be asked in time.
var ErrNotFound = errors.New("not found")

// Config says which cluster, and which part of it.
type Config struct {
	// Kubeconfig is a file. Empty means the pod's own service account.
	Kubeconfig string
	// NodeName is the node whose pods are watched.
	NodeName string
	// UserAgent names the program in the API server's audit log.
	UserAgent string
	// DefinitionsFile is where a copy of the definitions is kept for a start
	// without the API. Empty keeps none.
	DefinitionsFile string
	Log             *slog.Logger
}

// Cluster is the connection to one cluster as one node sees it.
type Cluster struct {
	Pods        *Pods
	Definitions *Definitions
	Events      *Events
	// ResourceSlices are asked for when a pod has claimed devices.
	ResourceSlices *ResourceSlices

	api *reach
	// began is when the API was first tried.
	began time.Time
}

// Requests per second and in one go. A pod with extra networks takes one status
// write; reads come from memory. The API server has a queue of its own.
const (
	qps   = 100
	burst = 200
	// Events are many and wait in a queue of their own, so that they never
	// delay a status write. When many pods start at once nearly all events come
	// after them: the API server has its hands full with the pods.
	eventQPS   = 10
	eventBurst = 1
)

// Connect prepares the connection. It sends no request: Run does, and whoever
// records an event.
func Connect(c Config) (*Cluster, error) {
	conf, err := restConfig(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	cluster, err := connect(conf, c)
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return cluster, nil
}

func connect(conf *rest.Config, c Config) (*Cluster, error) {
	if c.NodeName == "" {
		return nil, errors.New("no node name; give the name of the Node object that this machine is (--node-name)")
	}
	conf = rest.CopyConfig(conf)
	conf.UserAgent = c.UserAgent
	conf.QPS, conf.Burst = qps, burst
	meta, err := metadata.NewForConfig(conf)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(conf)
	if err != nil {
		return nil, err
	}
	eventConf := rest.CopyConfig(conf)
	eventConf.QPS, eventConf.Burst = eventQPS, eventBurst
	eventConf.ContentType = "application/vnd.kubernetes.protobuf"
	core, err := corev1client.NewForConfig(eventConf)
	if err != nil {
		return nil, err
	}
	api := &reach{}
	cluster := &Cluster{
		Pods:           newPods(meta, dyn, c.NodeName, api, c.Log),
		Definitions:    newDefinitions(dyn, api, c.Log),
		Events:         newEvents(core, c.NodeName),
		ResourceSlices: newResourceSlices(dyn, c.NodeName),
		api:            api,
		began:          time.Now(),
	}
	cluster.Definitions.copy.load(c.DefinitionsFile, c.Log)
	return cluster, nil
}

func restConfig(c Config) (*rest.Config, error) {
	if c.Kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
}

// Run follows the cluster until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.Pods.table.run(ctx) })
	wg.Go(func() { c.Definitions.table.run(ctx) })
	wg.Go(func() { c.Definitions.keepCopy(ctx) })
	wg.Go(func() { c.Events.run(ctx) })
	wg.Wait()
	return nil
}

// Synced returns nil once pods can be served, and otherwise says what is
// missing and why: the pods and definitions have been read for the first time;
// or else the API is away, and there are the copy of the definitions and what
// runtimes tell of their pods.
func (c *Cluster) Synced() error {
	err := errors.Join(c.Pods.table.pending(), c.Definitions.table.pending())
	if err != nil && c.Definitions.copy.loaded() && (c.api.away() || time.Since(c.began) > patience) {
		return nil
	}
	return err
}

// Following says why what is in memory may be behind the API, nil while it is
// not.
func (c *Cluster) Following() error {
	return errors.Join(c.Pods.table.lagging(), c.Definitions.table.lagging())
}

// WaitSynced waits until Synced returns nil or ctx ends.
func (c *Cluster) WaitSynced(ctx context.Context) error {
	for _, synced := range []<-chan struct{}{c.Pods.table.synced, c.Definitions.table.synced} {
		select {
		case <-synced:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), c.Synced())
		}
	}
	return nil
}

// backoff is the pause before the next try after n failures in a row, without
// jitter: 250 ms and then twice as long each time, up to limit.
func backoff(n int, limit time.Duration) time.Duration {
	d := 250 * time.Millisecond
	for range n {
		if d *= 2; d >= limit {
			return limit
		}
	}
	return d
}

// pause waits for d, spread by up to half of it so that nodes do not step in
// time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(jitter(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
