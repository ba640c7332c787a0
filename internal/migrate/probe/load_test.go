package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func loadTarget(t *testing.T, s string) LoadTarget {
	t.Helper()
	target, err := ParseLoadTarget(s)
	try(t, err)
	return target
}

// A server that answers one request, refuses the next and hangs up on the third
// has each of them counted as it was: nothing is tried again.
func TestALoadCountsWhatBecameOfEachRequest(t *testing.T) {
	var conns, good, refused, cut atomic.Int64
	srv := &Server{Pod: "web-0", Node: "node1"}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := conns.Add(1); n % 3 {
		case 0:
			refused.Add(1)
			http.Error(w, "no", http.StatusBadGateway)
		case 1:
			good.Add(1)
			srv.Handler().ServeHTTP(w, r)
		default:
			cut.Add(1)
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
		}
	}))
	var accepted atomic.Int64
	web.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			accepted.Add(1)
		}
	}
	web.Start()
	defer web.Close()
	ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	load := Load{Rate: 200, Timeout: 10 * time.Second, Targets: []LoadTarget{loadTarget(t, "web="+web.URL)}}
	c := load.Run(ctx)
	n := c.Targets[0]
	if int64(n.Asked) != accepted.Load() || int64(n.Asked) != conns.Load() {
		t.Errorf("%d asked, %d connections, %d requests", n.Asked, accepted.Load(), conns.Load())
	}
	if int64(n.OK) != good.Load() || int64(n.Failed) != refused.Load()+cut.Load() || n.OK+n.Failed != n.Asked || n.Failed == 0 {
		t.Errorf("%d ok, %d failed of %d; the server answered %d, refused %d and cut %d", n.OK, n.Failed, n.Asked, good.Load(), refused.Load(), cut.Load())
	}
	if n.Clients["127.0.0.1"] != n.OK || n.Servers["web-0 on node1"] != n.OK {
		t.Errorf("clients %v, servers %v", n.Clients, n.Servers)
	}
	var said []string
	for _, e := range n.Errors {
		said = append(said, e.Error)
		if e.At.Before(c.Started) || e.At.After(c.Ended) || e.At.After(n.LastFailure) {
			t.Errorf("failure at %s, the load was from %s to %s, the last failure at %s", e.At, c.Started, c.Ended, n.LastFailure)
		}
	}
	slices.Sort(said)
	if want := []string{`it answered "502 Bad Gateway"`, "the connection ended without an answer"}; !slices.Equal(slices.Compact(said), want) {
		t.Errorf("errors: %q", said)
	}
}

func TestALoadConnectsToPorts(t *testing.T) {
	open, closed := listen(t, nil, "127.0.0.1:0"), listen(t, nil, "127.0.0.1:0")
	closed.Close()
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	load := Load{Rate: 100, Timeout: 10 * time.Second, Targets: []LoadTarget{
		loadTarget(t, "open=tcp://localhost:"+port(open)), loadTarget(t, "closed=tcp://"+closed.Addr().String()),
	}}
	c := load.Run(ctx)
	if n := c.Targets[0]; n.OK == 0 || n.Failed != 0 {
		t.Errorf("open: %d ok, %d failed: %v", n.OK, n.Failed, n.Errors)
	}
	if n := c.Targets[1]; n.OK != 0 || n.Failed == 0 || n.Errors[0].Error != "connection refused" {
		t.Errorf("closed: %d ok, %d failed: %v", n.OK, n.Failed, n.Errors)
	}
	if c.Failed() != c.Targets[1].Failed || c.Asked() != c.Targets[0].Asked+c.Targets[1].Asked {
		t.Errorf("sums: %d of %d", c.Failed(), c.Asked())
	}
}

// A request that was asked is not given up because the load ends.
func TestALoadWaitsForItsLastAnswers(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		stop()
		time.Sleep(50 * time.Millisecond) // the answer takes longer than the load
		fmt.Fprint(w, "late")
	}))
	defer web.Close()
	load := Load{Rate: 1, Timeout: time.Minute, Targets: []LoadTarget{loadTarget(t, "late="+web.URL)}}
	if n := load.Run(ctx).Targets[0]; n.Asked != 1 || n.OK != 1 || n.SlowestMicros < 50_000 || len(n.Clients) != 0 {
		t.Errorf("counts %+v", n.Errors)
	}
}

func TestARequestTimesOut(t *testing.T) {
	silent := listen(t, nil, "127.0.0.1:0")
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	load := Load{Rate: 1, Timeout: 20 * time.Millisecond, Targets: []LoadTarget{loadTarget(t, "silent=http://"+silent.Addr().String())}}
	n := load.Run(ctx).Targets[0]
	if n.Failed != 1 || n.Errors[0].Error != "timed out after 20ms" || n.Errors[0].Micros < 20_000 {
		t.Errorf("%d failed: %+v", n.Failed, n.Errors)
	}
}

func TestTargetsOfALoad(t *testing.T) {
	for s, want := range map[string]string{
		"a=http://b":             "",
		"a=http://b:80/c?d=e":    "",
		"a=tcp://b:80":           "",
		"a=http://[fd00::1]:80/": "",
		"http://b":               `target "http://b": it must be NAME=URL`,
		"=http://b":              `target "=http://b": it must be NAME=URL`,
		"a=tcp://b":              `target a: "tcp://b" has no port`,
		"a=https://b":            `target a: "https://b" must begin with http:// or tcp://`,
		"a=b":                    `target a: "b" has no host`,
		"a=http://:80":           `target a: "http://:80" has no host`,
	} {
		_, err := ParseLoadTarget(s)
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && got != want {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
}

// counts of a load of two targets, one of which failed often.
func counts() Counts {
	at := time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC)
	web := &TargetCount{Name: "web", URL: "http://web/", Clients: map[string]int{}, Servers: map[string]int{}}
	for i := range 3 {
		web.add(at, time.Duration(i)*500*time.Millisecond, fmt.Appendf(nil, `{"client":"10.0.0.%d","pod":"w","node":"n"}`, i/2), nil, time.Second)
	}
	for i := range 22 {
		web.add(at.Add(time.Duration(i)*time.Second), time.Second, nil, context.DeadlineExceeded, time.Second)
	}
	return Counts{Started: at, Ended: at.Add(time.Minute), Rate: 10, Targets: []*TargetCount{web, {Name: "quiet", URL: "tcp://q:1"}}}
}

func TestCountsAreATable(t *testing.T) {
	var b strings.Builder
	try(t, counts().Fprint(&b))
	lines := strings.SplitAfter(b.String(), "\n")
	head := strings.Join(lines[:4], "")
	want := `TARGET   ASKED   OK   FAILED   SLOW   SLOWEST   SERVERS SAW
web      25      3    22       1      1s        10.0.0.0 (2), 10.0.0.1 (1)
quiet    0       0    0        0      0s        ` + `
web at 02:00:00.000, after 1s: timed out after 1s
`
	if head != want || len(lines) != 3+maxErrors+2 || lines[len(lines)-2] != "web: and 2 more, the last at 02:00:21.000\n" {
		t.Errorf("printed:\n%s", b.String())
	}
}

func TestCountsAreFoundInALog(t *testing.T) {
	text, err := json.Marshal(counts())
	try(t, err)
	log := append([]byte("something else\n"), append(text, "\nbraidd: 22 of 25 requests failed\n"...)...)
	c, err := ParseCounts(log)
	if err != nil || c.Failed() != 22 || c.Targets[0].Clients["10.0.0.0"] != 2 || !c.Ended.Equal(c.Started.Add(time.Minute)) {
		t.Errorf("counts %+v, %v", c, err)
	}
	if _, err := ParseCounts([]byte("braidd: not at all\n")); err == nil {
		t.Error("counts were found where none are")
	}
}

// Who answers is counted by name, but not without a bound.
func TestPeersAreNotCountedForEver(t *testing.T) {
	m := map[string]int{}
	for i := range 2 * maxPeers {
		countPeer(m, fmt.Sprint(i))
	}
	if len(m) != maxPeers+1 || m["others"] != maxPeers {
		t.Errorf("%d names, %d others", len(m), m["others"])
	}
}
