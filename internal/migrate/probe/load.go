package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

const (
	// maxErrors is how many failures of a target are told in words.
	maxErrors = 20
	// maxPeers is how many addresses and servers are counted by name.
	maxPeers = 256
	// maxBody is the longest answer that a load takes, in bytes.
	maxBody = 4 << 20
	// slow is how long an answer takes at least when a packet was lost: TCP
	// sends the first one again after one second.
	slow = 900 * time.Millisecond
)

// A LoadTarget is asked again and again: http://host[:port]/path has a request
// answered, tcp://host:port a connection made.
type LoadTarget struct {
	Name string
	URL  *url.URL
}

// ParseLoadTarget reads NAME=URL.
func ParseLoadTarget(s string) (LoadTarget, error) {
	name, text, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return LoadTarget{}, fmt.Errorf("target %q: it must be NAME=URL", s)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return LoadTarget{}, fmt.Errorf("target %s: %w", name, err)
	case u.Hostname() == "":
		return LoadTarget{}, fmt.Errorf("target %s: %q has no host", name, text)
	case u.Scheme == "http":
	case u.Scheme == "tcp" && u.Port() != "":
	case u.Scheme == "tcp":
		return LoadTarget{}, fmt.Errorf("target %s: %q has no port", name, text)
	default:
		return LoadTarget{}, fmt.Errorf("target %s: %q must begin with http:// or tcp://", name, text)
	}
	return LoadTarget{name, u}, nil
}

// Load asks targets at a steady rate, whether answers come or not. Every
// request has a connection of its own, is tried once, at one address, and
// counts as what became of it.
type Load struct {
	Targets []LoadTarget
	// Rate is how many requests per second each target gets.
	Rate float64
	// Timeout is that of a request, with looking up its host.
	Timeout time.Duration
	// Dial makes connections; nil for the system's way.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Run asks until ctx is done, waits for the answers that are still due, and
// returns the counts.
func (l Load) Run(ctx context.Context) Counts {
	if l.Dial == nil {
		l.Dial = dialOnce
	}
	c := Counts{Started: time.Now().UTC(), Rate: l.Rate, Targets: make([]*TargetCount, len(l.Targets))}
	var wg sync.WaitGroup
	for i, t := range l.Targets {
		count := &TargetCount{Name: t.Name, URL: t.URL.String(), Clients: map[string]int{}, Servers: map[string]int{}}
		c.Targets[i] = count
		wg.Go(func() { l.steadily(ctx, t, count) })
	}
	wg.Wait()
	c.Ended = time.Now().UTC()
	return c
}

// steadily asks one target. A request that is asked is answered or times out,
// also when no more are to be asked.
func (l Load) steadily(ctx context.Context, t LoadTarget, count *TargetCount) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / l.Rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		wg.Go(func() {
			at := time.Now()
			body, err := l.once(context.WithoutCancel(ctx), t.URL)
			count.add(at, time.Since(at), body, err, l.Timeout)
		})
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (l Load) once(ctx context.Context, u *url.URL) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := l.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if u.Scheme == "tcp" {
		return nil, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, */*;q=0.1")
	return get(ctx, conn, req, maxBody)
}

// dialOnce tries the first address of a host and no other: what a second one
// makes good would be a loss that nobody sees.
func dialOnce(ctx context.Context, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	conn, err := dialer{}.tcp(ctx, netip.AddrPortFrom(addrs[0].Unmap(), uint16(number)))
	if err != nil {
		return nil, err // conn is a typed nil
	}
	return conn, nil
}

// Counts are what became of all requests of a load.
type Counts struct {
	Started time.Time      `json:"started"`
	Ended   time.Time      `json:"ended"`
	Rate    float64        `json:"rate"`
	Targets []*TargetCount `json:"targets"`
}

// TargetCount are those of one target.
type TargetCount struct {
	Name   string `json:"name"`
	URL    string `json:"url"`
	Asked  int    `json:"asked"`
	OK     int    `json:"ok"`
	Failed int    `json:"failed"`
	// Slow is how many of those that are OK took so long that a packet of theirs
	// was lost and sent again; SlowestMicros is how long the slowest took.
	Slow          int   `json:"slow"`
	SlowestMicros int64 `json:"slowestMicros"`
	// Errors are the first failures, LastFailure is when the last request was
	// asked that failed.
	Errors      []LoadError `json:"errors,omitempty"`
	LastFailure time.Time   `json:"lastFailure,omitzero"`
	// Clients counts the addresses that servers saw, Servers the pods that
	// answered, where they told (see Answer).
	Clients map[string]int `json:"clients,omitempty"`
	Servers map[string]int `json:"servers,omitempty"`

	mu sync.Mutex
}

// LoadError is a request that failed: when it was asked, and after how long it
// was given up.
type LoadError struct {
	At     time.Time `json:"at"`
	Micros int64     `json:"micros"`
	Error  string    `json:"error"`
}

func (c *TargetCount) add(at time.Time, took time.Duration, body []byte, err error, timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Asked++
	if err != nil {
		c.Failed++
		if c.LastFailure.Before(at) {
			c.LastFailure = at.UTC()
		}
		if len(c.Errors) < maxErrors {
			c.Errors = append(c.Errors, LoadError{At: at.UTC(), Micros: took.Microseconds(), Error: reason(err, timeout)})
		}
		return
	}
	c.OK++
	if took >= slow {
		c.Slow++
	}
	c.SlowestMicros = max(c.SlowestMicros, took.Microseconds())
	if a, err := ParseAnswer(body); err == nil {
		countPeer(c.Clients, a.Client.String())
		countPeer(c.Servers, a.who())
	}
}

// countPeer keeps a load that runs for days from naming every pod of them.
func countPeer(m map[string]int, name string) {
	if name == "" {
		return
	}
	if _, known := m[name]; !known && len(m) >= maxPeers {
		name = "others"
	}
	m[name]++
}

// Failed is how many requests failed.
func (c Counts) Failed() (n int) {
	for _, t := range c.Targets {
		n += t.Failed
	}
	return n
}

// Asked is how many requests were asked.
func (c Counts) Asked() (n int) {
	for _, t := range c.Targets {
		n += t.Asked
	}
	return n
}

// Fprint writes the counts for people.
func (c Counts) Fprint(w io.Writer) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "TARGET\tASKED\tOK\tFAILED\tSLOW\tSLOWEST\tSERVERS SAW")
	for _, n := range c.Targets {
		slowest := (time.Duration(n.SlowestMicros) * time.Microsecond).Round(100 * time.Microsecond)
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%s\n", n.Name, n.Asked, n.OK, n.Failed, n.Slow, slowest, peers(n.Clients))
	}
	t.Flush() // a strings.Builder takes everything
	for _, n := range c.Targets {
		for _, e := range n.Errors {
			after := (time.Duration(e.Micros) * time.Microsecond).Round(time.Millisecond)
			fmt.Fprintf(&b, "%s at %s, after %s: %s\n", n.Name, e.At.Format("15:04:05.000"), after, e.Error)
		}
		if more := n.Failed - len(n.Errors); more > 0 {
			fmt.Fprintf(&b, "%s: and %d more, the last at %s\n", n.Name, more, n.LastFailure.Format("15:04:05.000"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// peers are the names and counts of a map, most first.
func peers(m map[string]int) string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	const enough = 6
	var out []string
	for i, name := range names {
		if i == enough {
			out = append(out, fmt.Sprintf("and %d more", len(names)-enough))
			break
		}
		out = append(out, fmt.Sprintf("%s (%d)", name, m[name]))
	}
	return strings.Join(out, ", ")
}

// ParseCounts reads the JSON of Counts, as it is found in a pod's log: other
// lines may be around it.
func ParseCounts(text []byte) (Counts, error) {
	for line := range strings.Lines(string(text)) {
		var c Counts
		if strings.HasPrefix(line, `{"started":`) && json.Unmarshal([]byte(line), &c) == nil && !slices.Contains(c.Targets, nil) {
			return c, nil
		}
	}
	return Counts{}, errors.New("no counts of a load are in it")
}
