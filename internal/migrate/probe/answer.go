package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxAnswer is how long an answer of a Server may be, in bytes, its headers
// included.
const maxAnswer = 64 << 10

// Answer is what a Server tells of itself and of its client.
type Answer struct {
	// Host is the one that the client asked for.
	Host string `json:"host"`
	// Addresses are the server's own, without loopback and link-local ones.
	Addresses []netip.Addr `json:"addresses"`
	// Client is the address that the request came from, as the server saw it.
	Client netip.Addr `json:"client"`
	Pod    string     `json:"pod,omitempty"`
	Node   string     `json:"node,omitempty"`
}

// String is the answer as people read it.
func (a Answer) String() string {
	var b strings.Builder
	section := func(title string, lines ...string) {
		fmt.Fprintf(&b, "## %s\n", title)
		for _, l := range lines {
			fmt.Fprintf(&b, "- %s\n", l)
		}
		b.WriteByte('\n')
	}
	section("Requested Host", a.Host)
	addrs := make([]string, len(a.Addresses))
	for i, addr := range a.Addresses {
		addrs[i] = addr.String()
	}
	section("Host IP Addresses", addrs...)
	section("Client IP Address", a.Client.String())
	if who := a.who(); who != "" {
		section("Pod", who)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// who is the pod and its node, as far as the answer tells them.
func (a Answer) who() string {
	if a.Pod == "" || a.Node == "" {
		return a.Pod + a.Node
	}
	return a.Pod + " on " + a.Node
}

// ParseAnswer reads the JSON of a Server. What others answer is no Answer, and
// one without its client's address is none either.
func ParseAnswer(text []byte) (Answer, error) {
	var a Answer
	if err := json.Unmarshal(text, &a); err != nil {
		return Answer{}, errors.New("the answer is no probe's: it is not its JSON")
	}
	if !a.Client.IsValid() {
		return Answer{}, errors.New("the answer is no probe's: it does not tell the client's address")
	}
	a.Client = a.Client.Unmap().WithZone("")
	for i, addr := range a.Addresses {
		if !addr.IsValid() {
			return Answer{}, errors.New("the answer is no probe's: an address of the server is empty")
		}
		a.Addresses[i] = addr.Unmap().WithZone("")
	}
	return a, nil
}
