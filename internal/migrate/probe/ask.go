package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/migrate/probe/round"
	"braid.dev/braid/internal/netns"
)

// Options are how an asker asks. The zero value serves.
type Options struct {
	// From is the side of the probe that asks; empty for the node itself.
	From v1alpha1.Side
	// Source is the address of the probe, for answers that never came. What was
	// answered tells the address by itself.
	Source netip.Addr
	// Owners are the links of the node and their addresses.
	Owners []Owner

	// Timeout is that of one try (3 s), Tries how many there are (2), and Pause
	// what is between them (500 ms): what a node has just been told of takes a
	// moment to get into its rules.
	Timeout time.Duration
	Tries   int
	Pause   time.Duration
	// Parallel is how many targets are asked at once (32): a round in which
	// everything times out has to end before its node is taken for lost.
	Parallel int
	// DNSName is looked up at name servers. That it does not exist is as good an
	// answer as any.
	DNSName string
}

func (o Options) withDefaults() Options {
	o.Timeout = cmp.Or(o.Timeout, 3*time.Second)
	o.Tries = cmp.Or(o.Tries, 2)
	o.Pause = cmp.Or(o.Pause, 500*time.Millisecond)
	o.Parallel = cmp.Or(o.Parallel, 32)
	o.DNSName = cmp.Or(o.DNSName, "kubernetes.default.svc.cluster.local.")
	return o
}

// Ask asks every target from inside ns, nil for the process's own namespace,
// and returns one result for each, in order.
func Ask(ctx context.Context, ns *netns.NS, targets []v1alpha1.ProbeTarget, opts Options) []v1alpha1.ProbeResult {
	a := &asker{dial: dialer{ns}, Options: opts.withDefaults()}
	for _, t := range targets {
		if at, err := netip.ParseAddrPort(t.Address); err == nil && t.Kind == round.KindDNS {
			a.dns = append(a.dns, at)
		}
	}
	results := make([]v1alpha1.ProbeResult, len(targets))
	slots := make(chan struct{}, a.Parallel)
	var wg sync.WaitGroup
	for i, t := range targets {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = a.ask(ctx, t)
		})
	}
	wg.Wait()
	return results
}

// An Asker is a probe on this node, or with no side the node itself.
type Asker struct {
	Side   v1alpha1.Side
	NS     *netns.NS
	Source netip.Addr
}

// Report is one node's part of a round: every asker asks what it has to, all at
// the same time. opts.From and opts.Source are each asker's own.
func Report(ctx context.Context, node string, req v1alpha1.ProbeRequest, askers []Asker, opts Options) v1alpha1.ProbeReport {
	results := make([][]v1alpha1.ProbeResult, len(askers))
	var wg sync.WaitGroup
	for i, a := range askers {
		targets := slices.DeleteFunc(slices.Clone(req.Targets), func(t v1alpha1.ProbeTarget) bool {
			return !round.Asks(node, a.Side, t)
		})
		own := opts
		own.From, own.Source = a.Side, a.Source
		wg.Go(func() { results[i] = Ask(ctx, a.NS, targets, own) })
	}
	wg.Wait()
	return v1alpha1.ProbeReport{Round: req.Round, Results: slices.Concat(results...)}
}

type asker struct {
	Options
	dial dialer
	// dns are the name servers among the targets, which know the names of others.
	dns []netip.AddrPort
}

// seen is what one question brought.
type seen struct {
	source netip.Addr
	// server is the server's own address, of the family that it was asked by.
	server netip.Addr
	Answer // zero when the target tells nothing
}

func (a *asker) ask(ctx context.Context, t v1alpha1.ProbeTarget) v1alpha1.ProbeResult {
	began := time.Now()
	var reasons []string
	var s seen
	for try := range a.Tries {
		if try > 0 && !pause(ctx, a.Pause) {
			break
		}
		var err error
		if s, err = a.try(ctx, t); err == nil {
			reasons = nil
			break
		}
		if ctx.Err() != nil {
			reasons = append(reasons, "the round was given up")
			break
		}
		reasons = append(reasons, reason(err, a.Timeout))
	}
	r := v1alpha1.ProbeResult{From: a.From, To: t.Name, Error: inWords(reasons), Micros: time.Since(began).Microseconds()}
	if !s.source.IsValid() {
		s.source = a.Source
	}
	if s.source.IsValid() {
		r.Source = s.source.String()
	}
	if s.Client.IsValid() {
		r.Client = s.Client.String()
		r.Saw = saw(s.Client, s.source, a.From == "", a.Owners)
	}
	if s.server.IsValid() {
		r.Server = s.server.String()
	}
	return r
}

// pause waits, unless the round is given up before.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// inWords tells why all tries failed.
func inWords(reasons []string) string {
	same := len(slices.Compact(slices.Clone(reasons))) == 1
	switch {
	case same && len(reasons) == 1:
		return reasons[0]
	case same && len(reasons) == 2:
		return reasons[0] + ", twice"
	case same:
		return fmt.Sprintf("%s, %d times", reasons[0], len(reasons))
	default:
		return strings.Join(reasons, "; then ")
	}
}

func (a *asker) try(ctx context.Context, t v1alpha1.ProbeTarget) (seen, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	to, err := a.address(ctx, t)
	if err != nil {
		return seen{}, err
	}
	switch t.Kind {
	case round.KindPod, round.KindService, round.KindNode:
		return a.probe(ctx, t, to)
	case round.KindDNS:
		return a.lookUp(ctx, to)
	case round.KindAPIServer:
		return a.handshake(ctx, to)
	case round.KindOutside:
		return a.connect(ctx, to)
	default:
		return seen{}, fmt.Errorf("a target of unknown kind %q", t.Kind)
	}
}

// address is the target's; only what is outside may have a name.
func (a *asker) address(ctx context.Context, t v1alpha1.ProbeTarget) (netip.AddrPort, error) {
	to, err := netip.ParseAddrPort(t.Address)
	if err == nil || t.Kind != round.KindOutside {
		return to, err
	}
	host, port, err := net.SplitHostPort(t.Address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(a.dns) == 0 {
		return netip.AddrPort{}, fmt.Errorf("no name server is among the targets to look up %s", host)
	}
	addrs, err := a.resolver(a.dns[0], func(netip.Addr) {}).LookupNetIP(ctx, "ip", strings.TrimSuffix(host, ".")+".")
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(number)), nil
}

// pad is longer than a packet of any pod, jumbo frames included.
var pad = strings.Repeat("x", 10_000)

// probe asks a Server. A pod must be the one that was meant: with addresses
// that are in use twice, another one may answer.
func (a *asker) probe(ctx context.Context, t v1alpha1.ProbeTarget, to netip.AddrPort) (seen, error) {
	conn, err := a.dial.tcp(ctx, to)
	if err != nil {
		return seen{}, err
	}
	defer conn.Close()
	s := seen{source: local(conn.LocalAddr())}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/json", nil)
	if err != nil {
		return s, err
	}
	req.Header.Set(padHeader, pad)
	body, err := get(ctx, conn, req, maxAnswer)
	if err != nil {
		return s, err
	}
	answer, err := ParseAnswer(body)
	if err != nil {
		return s, err
	}
	if t.Kind == round.KindPod && !slices.Contains(answer.Addresses, to.Addr()) {
		return s, fmt.Errorf("another answered: pod %q on node %q with %v", answer.Pod, answer.Node, answer.Addresses)
	}
	s.Answer = answer
	if i := slices.IndexFunc(answer.Addresses, func(a netip.Addr) bool { return a.Is4() == to.Addr().Is4() }); i >= 0 {
		s.server = answer.Addresses[i]
	}
	return s, nil
}

// lookUp asks a name server. That the name does not exist is an answer too.
func (a *asker) lookUp(ctx context.Context, server netip.AddrPort) (seen, error) {
	// A resolver may still work when it has answered that the time is up.
	var source atomic.Value
	_, err := a.resolver(server, func(from netip.Addr) { source.Store(from) }).LookupNetIP(ctx, "ip4", a.DNSName)
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		err = nil
	}
	from, _ := source.Load().(netip.Addr)
	return seen{source: from}, err
}

// resolver asks one name server from inside the namespace, and tells from which
// address.
func (a *asker) resolver(server netip.AddrPort, from func(netip.Addr)) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		if ctx.Err() != nil {
			return nil, ctx.Err() // nobody waits any more, and the namespace may be closed
		}
		if strings.HasPrefix(network, "tcp") {
			c, err := a.dial.tcp(ctx, server)
			if err != nil {
				return nil, err // c would be a typed nil
			}
			conn = c
		} else {
			c, err := a.dial.udp(ctx, server)
			if err != nil {
				return nil, err
			}
			conn = c
		}
		from(local(conn.LocalAddr()))
		return conn, nil
	}}
}

// handshake goes as far as a TLS handshake does: an API server's certificates
// are longer than a packet. Nothing is told to the server, so that it need not
// be known who it is.
func (a *asker) handshake(ctx context.Context, to netip.AddrPort) (seen, error) {
	conn, err := a.dial.tcp(ctx, to)
	if err != nil {
		return seen{}, err
	}
	defer conn.Close()
	return seen{source: local(conn.LocalAddr())}, tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
}

func (a *asker) connect(ctx context.Context, to netip.AddrPort) (seen, error) {
	conn, err := a.dial.tcp(ctx, to)
	if err != nil {
		return seen{}, err
	}
	defer conn.Close()
	return seen{source: local(conn.LocalAddr())}, nil
}

func local(a net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(a.String()) // what the kernel says, or nothing
	return at.Addr().Unmap().WithZone("")
}
