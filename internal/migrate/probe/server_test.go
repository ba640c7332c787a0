package probe

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fetch asks a handler as a client at 10.243.4.0.
func fetch(h http.Handler, path string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host, r.RemoteAddr = "10.243.6.4:4567", "[::ffff:10.243.4.0]:33333"
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// The seed's application answers like this, line by line.
func TestPeopleReadWhatTheServerSaw(t *testing.T) {
	a := Answer{Host: "10.243.6.4", Addresses: []netip.Addr{netip.MustParseAddr("10.243.6.4")}, Client: netip.MustParseAddr("10.243.4.0")}
	want := `## Requested Host
- 10.243.6.4

## Host IP Addresses
- 10.243.6.4

## Client IP Address
- 10.243.4.0
`
	if a.String() != want {
		t.Errorf("answer:\n%s\nwant:\n%s", a, want)
	}
	a.Pod, a.Node = "testapp-1", "node-02"
	if want += "\n## Pod\n- testapp-1 on node-02\n"; a.String() != want {
		t.Errorf("answer:\n%s\nwant:\n%s", a, want)
	}
	got := fetch((&Server{}).Handler(), "/", nil).Body.String()
	if !strings.HasPrefix(got, "## Requested Host\n- 10.243.6.4\n\n## Host IP Addresses\n") || !strings.HasSuffix(got, "\n## Client IP Address\n- 10.243.4.0\n") {
		t.Errorf("GET /:\n%s", got)
	}
}

func TestProgramsReadJSON(t *testing.T) {
	h := (&Server{Pod: "testapp-1", Node: "node-02"}).Handler()
	for path, header := range map[string]http.Header{"/json": nil, "/": {"Accept": {"text/html, application/json"}}} {
		a, err := ParseAnswer(fetch(h, path, header).Body.Bytes())
		if err != nil || a.Host != "10.243.6.4" || a.Client.String() != "10.243.4.0" || a.Pod != "testapp-1" || a.Node != "node-02" {
			t.Errorf("GET %s: %+v, %v", path, a, err)
		}
		if slices.ContainsFunc(a.Addresses, netip.Addr.IsLoopback) {
			t.Errorf("GET %s: addresses %v", path, a.Addresses)
		}
	}
	if code := fetch(h, "/elsewhere", nil).Code; code != http.StatusNotFound {
		t.Errorf("GET /elsewhere: %d", code)
	}
}

func TestHostsAreToldWithoutTheirPorts(t *testing.T) {
	for host, want := range map[string]string{"a:80": "a", "a": "a", "[fd00::1]:80": "fd00::1", "[fd00::1]": "fd00::1", "": ""} {
		if got := hostname(host); got != want {
			t.Errorf("%q: %q", host, got)
		}
	}
}

// A replica is a server that a service has, until a moment after it is not
// ready any more, as the nodes of a cluster learn that late.
type replica struct {
	address string
	ready   atomic.Bool
	end     context.CancelFunc
	ended   chan error
}

func startReplica(t *testing.T, grace time.Duration) *replica {
	t.Helper()
	l := listen(t, nil, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	r := &replica{address: l.Addr().String(), end: cancel, ended: make(chan error, 1)}
	s := &Server{Pod: r.address, Grace: grace}
	go func() { r.ended <- s.Serve(ctx, l) }()
	r.ready.Store(true)
	return r
}

// asksReady is the state of /ready.
func (r *replica) asksReady(t *testing.T) bool {
	resp, err := http.Get("http://" + r.address + "/ready")
	if err != nil {
		t.Errorf("/ready: %v", err)
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// serviceOf sends each connection to any replica that is ready.
type serviceOf struct {
	mu       sync.Mutex
	replicas []*replica
}

func (s *serviceOf) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	ready := slices.DeleteFunc(slices.Clone(s.replicas), func(r *replica) bool { return !r.ready.Load() })
	s.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", ready[rand.IntN(len(ready))].address)
}

// restart replaces one replica after the other, under load, as a migration
// does, and returns what the load counted. Between the moment a server is told
// to end and the one when its service knows, there are requests.
func restart(t *testing.T, grace time.Duration) Counts {
	t.Helper()
	svc := &serviceOf{replicas: []*replica{startReplica(t, grace), startReplica(t, grace)}}
	u, _ := url.Parse("http://service.test/")
	load := Load{Targets: []LoadTarget{{"service", u}}, Rate: 300, Timeout: 10 * time.Second, Dial: svc.dial}
	ctx, stop := context.WithCancel(t.Context())
	counted := make(chan Counts)
	go func() { counted <- load.Run(ctx) }()
	for i := range svc.replicas {
		old := svc.replicas[i]
		fresh := startReplica(t, grace)
		old.end()
		if grace > 0 {
			// The moment is over once /ready says no; there is no event for that.
			for old.asksReady(t) {
				time.Sleep(time.Millisecond)
			}
		} else {
			time.Sleep(100 * time.Millisecond) // a moment without grace
		}
		svc.mu.Lock()
		old.ready.Store(false)
		svc.replicas[i] = fresh
		svc.mu.Unlock()
		if err := <-old.ended; err != nil {
			t.Error(err)
		}
	}
	stop()
	c := <-counted
	for _, r := range svc.replicas {
		r.end()
	}
	for _, r := range svc.replicas {
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
	return c
}

func TestAServerThatEndsLosesNoRequest(t *testing.T) {
	c := restart(t, 2*time.Second)
	if n := c.Targets[0]; n.Failed != 0 || n.OK != n.Asked || n.Asked < 100 || len(n.Servers) < 3 {
		t.Errorf("%d asked, %d ok, %d failed: %v; servers %v", n.Asked, n.OK, n.Failed, n.Errors, n.Servers)
	}
	t.Logf("%d requests", c.Asked())
}

// Without grace the same restarts lose requests: the test above can fail.
func TestAServerWithoutGraceLosesRequests(t *testing.T) {
	if c := restart(t, 0); c.Failed() == 0 {
		t.Errorf("%d requests and none was lost", c.Asked())
	}
}

func TestRequestsThatWereBegunAreAnswered(t *testing.T) {
	r := startReplica(t, 0)
	conn, err := net.Dial("tcp", r.address)
	try(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /json HTTP/1.1\r\n")
	try(t, err)
	// The server has the connection when it answers one that came later.
	if !r.asksReady(t) {
		t.Error("not ready")
	}
	r.end()
	_, err = io.WriteString(conn, "Host: a\r\n\r\n")
	try(t, err)
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), `"client":"127.0.0.1"`) {
		t.Errorf("answer %q, %v", answer, err)
	}
	try(t, <-r.ended)
}

func TestAServerSaysThatItCannotServe(t *testing.T) {
	l := listen(t, nil, "127.0.0.1:0")
	l.Close()
	if err := (&Server{}).Serve(t.Context(), l); err == nil {
		t.Error("it served on a closed listener")
	}
}
