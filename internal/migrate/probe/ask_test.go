package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/migrate/probe/round"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// asked is one round in the world: old, new and the node ask everything.
func asked(t *testing.T, w world, preserve bool) v1alpha1.RoundSummary {
	t.Helper()
	request := round.Round{When: "Try", ProbeRequest: v1alpha1.ProbeRequest{Round: 3, Targets: round.Targets(round.World{
		Probes: []round.Probe{
			{Node: "node1", Side: v1alpha1.Source, Addr: netip.MustParseAddrPort("10.243.1.2:8080")},
			{Node: "node1", Side: v1alpha1.Target, Addr: netip.MustParseAddrPort("172.20.1.2:8080")},
		},
		Services: []round.Service{{Name: "probes", Addr: netip.MustParseAddrPort("10.97.0.80:80")}},
		Nodes: []round.Node{
			{Name: "node1", Addr: netip.MustParseAddrPort("192.0.2.1:18080")},
			{Name: "node2", Addr: netip.MustParseAddrPort("192.0.2.2:18080")},
		},
	})}}
	owners, err := Owners(w.node)
	try(t, err)
	askers := []Asker{{Side: v1alpha1.Source, NS: w.old}, {Side: v1alpha1.Target, NS: w.new}, {NS: w.node}}
	opts := Options{Owners: owners, Timeout: 10 * time.Second, Tries: 1}
	report := Report(t.Context(), "node1", request.ProbeRequest, askers, opts)
	return round.Judge(request, map[string]v1alpha1.ProbeReport{"node1": report}, preserve)
}

// The seed's finding, with real packets: between CNIs, servers see addresses of
// the node's links; with the exemption they see the pods' own.
func TestServersTellWhoRewroteAddresses(t *testing.T) {
	w := newWorld(t)
	rules(t, w.node, masquerade)
	rules(t, w.node, service)
	serve(t, w.old, ":8080", "source-node1", "node1")
	serve(t, w.new, ":8080", "target-node1", "node1")
	serve(t, w.node, "192.0.2.1:18080", "agent", "node1")
	serve(t, w.outside, "192.0.2.2:18080", "agent", "node2")

	sum := asked(t, w, false)
	var got strings.Builder
	try(t, round.Fprint(&got, sum))
	want := `round 3, Try: 10 asked, all answered
FROM   TO     WHERE        BY        SERVERS SAW   REQUESTS
old    new    same node    direct    cilium_host   1
old    node   same node    direct    own           1
old    node   other node   direct    node          1
new    old    same node    direct    cni0          1
new    node   same node    direct    own           1
new    node   other node   direct    node          1
node   old    same node    direct    cni0          1
node   new    same node    direct    cilium_host   1
old    new    same node    service   cilium_host   1
`
	if got.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got.String(), want)
	}

	sum = asked(t, w, true)
	wantFailures := []string{
		"old pod on node1 → new pod on node1 (172.20.1.2:8080): the server saw 172.20.1.1 (cilium_host), not the probe's own 10.243.1.2",
		"old pod on node1 → service probes (10.97.0.80:80): the server saw 172.20.1.1 (cilium_host), not the probe's own 10.243.1.2",
		"new pod on node1 → old pod on node1 (10.243.1.2:8080): the server saw 10.243.1.1 (cni0), not the probe's own 172.20.1.2",
	}
	if !slices.Equal(sum.Failures, wantFailures) {
		t.Errorf("failures: %q", sum.Failures)
	}

	rules(t, w.node, keepSource)
	if sum := asked(t, w, true); sum.Failed != 0 {
		t.Errorf("with the exemption: %q", sum.Failures)
	}
}

// target is one of a kind at an address.
func target(kind, address string) v1alpha1.ProbeTarget {
	return v1alpha1.ProbeTarget{Name: "it", Kind: kind, Address: address}
}

// ask asks one target from inside ns.
func ask(t *testing.T, ns *netns.NS, o Options, targets ...v1alpha1.ProbeTarget) v1alpha1.ProbeResult {
	t.Helper()
	results := Ask(t.Context(), ns, targets, o)
	if len(results) != len(targets) {
		t.Fatalf("%d targets have %d results", len(targets), len(results))
	}
	return results[0]
}

// A path that loses full packets lets connections be made, and then hangs.
func TestAPathThatLosesFullPacketsFails(t *testing.T) {
	w := newWorld(t)
	serve(t, w.new, ":8080", "target-node1", "node1")
	to := target(round.KindPod, "172.20.1.2:8080")
	if r := ask(t, w.old, Options{Timeout: 10 * time.Second, Tries: 1}, to); r.Error != "" {
		t.Fatalf("whole path: %s", r.Error)
	}
	rules(t, w.node, blackhole)
	if r := ask(t, w.old, soon(Options{}), to); r.Error != "timed out after 500ms, twice" {
		t.Errorf("error %q", r.Error)
	}
	if r := ask(t, w.old, soon(Options{}), target(round.KindOutside, "172.20.1.2:8080")); r.Error != "" {
		t.Errorf("a bare connection: %s", r.Error)
	}
}

// dnsServer answers queries inside ns: with an address, or with an error code.
func dnsServer(t *testing.T, ns *netns.NS, address string, code byte, a netip.Addr) {
	t.Helper()
	var conn net.PacketConn
	try(t, ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", address)
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // the end of the test
			}
			conn.WriteTo(dnsAnswer(buf[:n], code, a), from)
		}
	}()
}

// dnsAnswer is an answer to a query with one question (RFC 1035, section 4).
func dnsAnswer(query []byte, code byte, a netip.Addr) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // the name's end, type and class
	isA := binary.BigEndian.Uint16(query[end-4:]) == 1
	out := append([]byte{query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
	if code == 0 && isA {
		out[7] = 1
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		out = append(out, a.AsSlice()...)
	}
	return out
}

func TestNameServersAreAskedFromInsidePods(t *testing.T) {
	w := newWorld(t)
	outside := netip.MustParseAddr("192.0.2.2")
	dnsServer(t, w.outside, "192.0.2.2:53", 0, outside)
	dnsServer(t, w.outside, "192.0.2.2:54", 3, outside)
	dnsServer(t, w.outside, "192.0.2.2:55", 2, outside)
	l := listen(t, w.outside, "192.0.2.2:9999")
	for _, tc := range []struct{ address, want string }{
		{"192.0.2.2:53", ""},
		{"192.0.2.2:54", ""}, // the name does not exist: an answer
		{"192.0.2.2:55", "look up kubernetes.default.svc.cluster.local: server misbehaving, twice"},
	} {
		r := ask(t, w.old, Options{Pause: time.Millisecond}, target(round.KindDNS, tc.address))
		if r.Error != tc.want || r.Source != "10.243.1.2" {
			t.Errorf("%s: from %q: error %q, want %q", tc.address, r.Source, r.Error, tc.want)
		}
	}
	// A name outside is looked up at the cluster's name server, inside the pod.
	name := target(round.KindOutside, "server.example:"+port(l))
	if r := ask(t, w.old, Options{Tries: 1}, name, target(round.KindDNS, "192.0.2.2:53")); r.Error != "" {
		t.Errorf("by name: %s", r.Error)
	}
	if r := ask(t, w.old, Options{Tries: 1}, name); r.Error != "no name server is among the targets to look up server.example" {
		t.Errorf("without a name server: %q", r.Error)
	}
}

func port(l net.Listener) string {
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}

func TestAnAPIServerIsAskedUpToItsCertificate(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	if r := ask(t, nil, Options{}, target(round.KindAPIServer, srv.Listener.Addr().String())); r.Error != "" || r.Source != "127.0.0.1" {
		t.Errorf("result %+v", r)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	r := ask(t, nil, soon(Options{}), target(round.KindAPIServer, plain.Listener.Addr().String()))
	if !strings.Contains(r.Error, "does not look like a TLS handshake") {
		t.Errorf("no TLS: %q", r.Error)
	}
}

func TestReasonsOfFailuresAreShort(t *testing.T) {
	silent := listen(t, nil, "127.0.0.1:0") // the kernel connects, nobody answers
	gone := listen(t, nil, "127.0.0.1:0")
	gone.Close()
	for _, tc := range []struct{ address, answer, want string }{
		{silent.Addr().String(), "", "timed out after 500ms, twice"},
		{gone.Addr().String(), "", "connection refused, twice"},
		{"nowhere", "", "not an ip:port"},
		{"", "HTTP/1.1 503 Service Unavailable\r\n\r\n", `it answered "503 Service Unavailable", twice`},
		{"", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "the connection ended without an answer, twice"},
		{"", "HTTP/1.1 200 OK\r\n\r\nhello", "the answer is no probe's: it is not its JSON, twice"},
		{"", "HTTP/1.1 200 OK\r\n\r\n{}", "the answer is no probe's: it does not tell the client's address, twice"},
		{"", "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", maxAnswer), "the answer is longer than 65536 bytes, twice"},
		{"", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswer), "the answer is longer than 65536 bytes, twice"},
		{"", "HTTP/1.1 200 OK\r\n\r\n" + `{"client":"127.0.0.1","addresses":["10.0.0.7"],"pod":"p","node":"n"}`,
			`another answered: pod "p" on node "n" with [10.0.0.7], twice`},
	} {
		if tc.address == "" {
			tc.address = canned(t, nil, "127.0.0.1:0", tc.answer)
		}
		r := ask(t, nil, soon(Options{From: v1alpha1.Target}), target(round.KindPod, tc.address))
		if !strings.Contains(r.Error, tc.want) || r.Client != "" || r.From != v1alpha1.Target || r.To != "it" {
			t.Errorf("%.60q: %+v, want %q", tc.answer, r, tc.want)
		}
	}
}

// canned is the address of a server that says the same to everyone.
func canned(t *testing.T, ns *netns.NS, address, answer string) string {
	l := listen(t, ns, address)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the end of the test
			}
			// Reading first keeps the kernel from resetting the connection.
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil && req.Header.Get(padHeader) == pad {
				conn.Write([]byte(answer))
			}
			conn.Close()
		}
	}()
	return l.Addr().String()
}

func TestProbesSpeakIPv6(t *testing.T) {
	ns := kerneltest.NewNS(t)
	h, err := rtnl.Open(ns)
	try(t, err)
	defer h.Close()
	lo, err := h.Link("lo")
	try(t, err)
	try(t, h.SetUp(lo.Index))
	address := canned(t, ns, "[::1]:0", "HTTP/1.1 200 OK\r\n\r\n"+`{"client":"::1","addresses":["10.0.0.7","fd00::7"]}`)
	r := ask(t, ns, Options{From: v1alpha1.Source}, target(round.KindService, address))
	if r.Error != "" || r.Source != "::1" || r.Client != "::1" || r.Saw != "own" || r.Server != "fd00::7" {
		t.Errorf("result %+v", r)
	}
}

func TestASecondTryCounts(t *testing.T) {
	first := true
	srv := &Server{Pod: "p", Node: "n"}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		srv.Handler().ServeHTTP(w, r)
	}))
	defer web.Close()
	r := ask(t, nil, soon(Options{}), target(round.KindService, web.Listener.Addr().String()))
	if r.Error != "" || r.Client != "127.0.0.1" || r.Source != "127.0.0.1" {
		t.Errorf("result %+v", r)
	}
}

// Whoever gives a round up does not wait for its timeouts.
func TestARoundCanBeGivenUp(t *testing.T) {
	silent := listen(t, nil, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if conn, err := silent.Accept(); err == nil {
			cancel() // while the first is asked
			conn.Close()
		}
	}()
	var targets []v1alpha1.ProbeTarget
	for i := range 50 {
		to := target(round.KindPod, silent.Addr().String())
		to.Name = fmt.Sprint(i)
		targets = append(targets, to)
	}
	began := time.Now()
	for i, r := range Ask(ctx, nil, targets, Options{Timeout: time.Hour}) {
		if r.To != fmt.Sprint(i) || r.Error == "" {
			t.Errorf("result %d: %+v", i, r)
		}
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

func TestTheOwnerOfAnAddress(t *testing.T) {
	a := netip.MustParseAddr
	owners := []Owner{
		{Link: "eth0", Addrs: []netip.Addr{a("192.0.2.1"), a("fe80::1")}, Node: true},
		{Link: "cni0", Addrs: []netip.Addr{a("10.243.1.1")}},
	}
	for _, tc := range []struct {
		client, source string
		node           bool
		want           string
	}{
		{"10.243.1.2", "10.243.1.2", false, "own"},
		{"192.0.2.1", "10.243.1.2", false, "node"},
		{"10.243.1.1", "10.243.1.2", false, "cni0"},
		{"10.243.1.1", "10.243.1.1", false, "own"},
		{"10.243.1.1", "10.243.1.1", true, "cni0"},
		{"203.0.113.7", "203.0.113.7", true, "own"},
		{"203.0.113.7", "10.243.1.2", false, ""},
	} {
		if got := saw(a(tc.client), a(tc.source), tc.node, owners); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

func TestOwnersAreTheLinksOfTheNode(t *testing.T) {
	w := newWorld(t)
	got, err := Owners(w.node)
	try(t, err)
	var lines []string
	for _, o := range got {
		i := slices.IndexFunc(o.Addrs, netip.Addr.Is4)
		lines = append(lines, fmt.Sprint(o.Link, " ", o.Addrs[i], " ", o.Node))
	}
	want := []string{"cilium_host 172.20.1.1 false", "cni0 10.243.1.1 false", "eth0 192.0.2.1 true"}
	if slices.Sort(lines); !slices.Equal(lines, want) {
		t.Errorf("owners: %q", lines)
	}
}
