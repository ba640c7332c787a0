package netns_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"braid.dev/braid/internal/netns"
)

func TestAnUnnamedNamespaceLivesUntilItIsClosed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("creating network namespaces needs root")
	}
	before := currentID(t)
	ns, err := netns.NewUnnamed()
	if err != nil {
		t.Fatal(err)
	}
	if after := currentID(t); after != before {
		t.Errorf("in namespace %v, before: %v", after, before)
	}
	if id, err := ns.ID(); err != nil || id == before {
		t.Errorf("the new one is %v, %v", id, err)
	}
	// A socket inside outlives every Do, and another namespace does not see it.
	var l net.Listener
	for range 2 {
		err := ns.Do(func() error {
			links, err := net.Interfaces()
			if err == nil && (len(links) != 1 || links[0].Name != "lo") {
				err = fmt.Errorf("links of a new namespace: %v", links)
			}
			if err == nil && l == nil {
				l, err = net.Listen("tcp", "127.0.0.1:0")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the listener of the new namespace is reached from outside")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := ns.Close(); err != nil {
		t.Error(err)
	}
}
