package rtnl

import (
	"net/netip"
	"strings"
	"testing"

	"braid.dev/braid/internal/kerneltest"
)

func TestObserveAllSeesWhatObserveLeavesOut(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	mac := []byte{2, 0, 0, 0, 0, 7}
	l, err := h.AddVeth(Veth{New: New{Name: "near", MAC: mac}, Peer: New{Name: "far"}})
	if err != nil {
		t.Fatal(err)
	}
	steps := []error{
		h.SetUp(l.Index),
		h.SetNeigh(l.Index, Neigh{Addr: netip.MustParseAddr("10.0.0.9"), MAC: mac, Permanent: true}),
		h.AddTBF(l.Index, TBF{Rate: 1000, Burst: 5000, LatencyMillis: 10}),
		h.AddRule(Rule{From: netip.MustParsePrefix("10.0.0.5/32"), Table: 77}),
	}
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := ObserveAll(ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"link near mac 02:00:00:00:00:07 flags broadcast,multicast txqlen 1000\n",
		"  neigh 10.0.0.9 mac 02:00:00:00:00:07 proxy false\n",
		"  qdisc tbf handle 1:0 parent root rate 1000 limit 5010 ",
		"from 10.0.0.5/32 to all iif \"\" oif \"\" mark 0x0 lookup 77\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
}

func TestBothEndsOfAVethHaveAQueue(t *testing.T) {
	kerneltest.Need(t, kerneltest.Veth)
	ns := kerneltest.NewNS(t)
	h, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.AddVeth(Veth{New: New{Name: "near"}, Peer: New{Name: "far"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"near", "far"} {
		l, err := h.Link(name)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := h.Tuning(l.Index); now.TxQLen != 1000 || err != nil {
			t.Errorf("%s has a transmit queue of %d, want the kernel's 1000 (%v)", name, now.TxQLen, err)
		}
	}
}
