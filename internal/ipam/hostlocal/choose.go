package hostlocal

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"braid.dev/braid/internal/ipam/request"
)

// key identifies an attachment within its network.
type key struct{ containerID, ifName string }

// state is what the network's directory says.
type state struct {
	// holders has every address that is taken by a living file.
	holders map[netip.Addr]holder
	// torn has the addresses whose file is empty. They are free.
	torn map[netip.Addr]bool
	// last has the address that each range set gave last, invalid when unknown.
	last []netip.Addr
}

// holder is the content of an address file without surrounding white space:
// "containerID\r\nifName", or only the container ID in files of host-local
// before v0.8. It is empty when the content is unknown.
type holder string

const lineBreak = "\r\n"

func (k key) holder() holder { return holder(k.containerID + lineBreak + k.ifName) }

// String names the holder for a person.
func (h holder) String() string {
	id, ifName, ok := strings.Cut(string(h), lineBreak)
	switch {
	case h == "":
		return "an unknown holder"
	case !ok:
		return "container " + id
	}
	return "container " + id + " (" + ifName + ")"
}

// choice is the address that a range set gives to the attachment.
type choice struct {
	set  int
	addr netip.Addr
	// held is true when the attachment has the address already.
	held bool
	span span
}

// choose decides which address each range set gives to k. It keeps what k holds
// already: an earlier Add of the same attachment was interrupted, or its answer
// was lost.
func choose(sets []rangeSet, asked []netip.Addr, st state, k key) ([]choice, error) {
	perSet, err := assign(sets, asked)
	if err != nil {
		return nil, err
	}
	var out []choice
	for i, set := range sets {
		c := choice{set: i}
		if perSet[i].IsValid() {
			c.addr, err = explicit(perSet[i], st, k)
		} else {
			c.addr, err = free(set, st, i, k)
		}
		if err != nil {
			return nil, err
		}
		c.held = st.holders[c.addr] == k.holder()
		n, _ := set.find(c.addr)
		c.span = set[n]
		out = append(out, c)
	}
	return out, nil
}

// assign gives each asked address to the range set that contains it.
func assign(sets []rangeSet, asked []netip.Addr) ([]netip.Addr, error) {
	perSet := make([]netip.Addr, len(sets))
	for _, a := range asked {
		i := slices.IndexFunc(sets, func(set rangeSet) bool { _, ok := set.find(a); return ok })
		if i < 0 {
			return nil, request.BadConf("requested address %s is in no range of the network (%s)", a, list(sets))
		}
		if perSet[i].IsValid() {
			return nil, request.BadConf("requested addresses %s and %s are both in range set %d (%v), which gives one", perSet[i], a, i, sets[i])
		}
		if n, _ := sets[i].find(a); sets[i][n].gateway == a {
			return nil, request.BadConf("requested address %s is the gateway of %s", a, sets[i][n].subnet)
		}
		perSet[i] = a
	}
	return perSet, nil
}

func list(sets []rangeSet) string {
	var parts []string
	for _, set := range sets {
		parts = append(parts, set.String())
	}
	return strings.Join(parts, "; ")
}

// explicit returns the asked address unless somebody else holds it.
func explicit(a netip.Addr, st state, k key) (netip.Addr, error) {
	if h, taken := st.holders[a]; taken && h != k.holder() {
		return netip.Addr{}, request.TryLater("requested address %s is held by %v", a, h)
	}
	return a, nil
}

// free returns what k holds already in the set, and otherwise the next free
// address.
func free(set rangeSet, st state, i int, k key) (netip.Addr, error) {
	for _, a := range st.heldBy(k) {
		if n, ok := set.find(a); ok && set[n].gateway != a {
			return a, nil
		}
	}
	taken := func(a netip.Addr) bool { _, ok := st.holders[a]; return ok }
	a, ok := set.next(st.last[i], taken)
	if !ok {
		return netip.Addr{}, request.TryLater("no free address in range set %d (%v): all are held by other attachments on this node", i, set)
	}
	return a, nil
}

// heldBy returns the addresses of k in rising order.
func (st state) heldBy(k key) []netip.Addr {
	var held []netip.Addr
	for a, h := range st.holders {
		if h == k.holder() {
			held = append(held, a)
		}
	}
	slices.SortFunc(held, netip.Addr.Compare)
	return held
}

// releasable returns the addresses that Del gives back: those of k or, when
// there are none, those recorded in the older format, without interface, for
// k's container.
func (st state) releasable(k key) []netip.Addr {
	if held := st.heldBy(k); len(held) > 0 {
		return held
	}
	var old []netip.Addr
	for a, h := range st.holders {
		if h == holder(k.containerID) {
			old = append(old, a)
		}
	}
	return old
}

// ownerless returns the addresses whose files say nothing, in rising order.
func (st state) ownerless() []netip.Addr {
	return slices.SortedFunc(maps.Keys(st.torn), netip.Addr.Compare)
}
