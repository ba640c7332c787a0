package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Change is what an edit of the networks annotation means for a pod that runs.
type Change struct {
	// Keep are the attachments that stay as they are.
	Keep []Attachment
	// Remove go, before any of Add comes: an interface name, an address or a
	// device may be theirs. The last reason of each says why it goes.
	Remove []Attachment
	// Add come, in the order in which the annotation asks for them.
	Add []Attachment
}

// Nothing reports whether the pod has what it asks for.
func (c Change) Nothing() bool { return len(c.Remove) == 0 && len(c.Add) == 0 }

// ChangeOf compares what the networks annotation of in.Pod asks for with the
// attachments that the pod has, as their records know them: all of the change
// or, with the first thing that cannot be given, an *Error.
//
// What the pod has is not planned again. An attachment stays as long as an
// element asks for its network in the same words, whatever has become of the
// NetworkAttachmentDefinition; without an interface in the element it keeps the
// one it has. The networks that every pod gets, the default network first,
// never change.
func ChangeOf(in Input, has []Attachment) (Change, error) {
	selections, err := in.asked()
	if err != nil {
		return Change{}, err
	}
	m, err := match(selections, has)
	if err != nil {
		return Change{}, err
	}
	c := Change{Keep: m.keep, Remove: m.remove}
	taken := owners(c.Keep)
	for _, e := range m.new(selections, taken) {
		a, err := in.selected(e, taken)
		if err != nil {
			return Change{}, err
		}
		if why := m.changed[e.place-1]; why != "" {
			a.because("attached anew: %s", why)
		}
		c.Add = append(c.Add, a)
		if err := bounded(slices.Concat(c.Keep, c.Add)); err != nil {
			return Change{}, err
		}
	}
	if err := assignDevices(in, c.Keep, c.Add); err != nil {
		return Change{}, err
	}
	foresee(c.Add)
	for _, a := range slices.Concat(c.Add, c.Remove) {
		if a.Claim != nil {
			return Change{}, about(a.Network, errRunningRoute)
		}
	}
	c.explain()
	return c, nil
}

// errRunningRoute refuses what would move the default route of a pod that
// runs: the connections it has would break, and the route that was given up for
// the claim is known no more.
var errRunningRoute = fmt.Errorf("default-route: the default route of a pod that runs does not change; undo the edit, or make the pod anew")

// explain says of the new attachments where packets go that the others carry
// too.
func (c Change) explain() {
	all := slices.Concat(c.Keep, c.Add)
	for i := range c.Keep {
		all[i].Reasons = nil // not theirs to keep
	}
	said := make([][]routed, len(all))
	for i := range all {
		said[i] = all[i].routed()
	}
	explainOverlaps(all, said)
	copy(c.Add, all[len(c.Keep):])
}

// matching says which element of the annotation asks for which attachment.
type matching struct {
	keep, remove []Attachment
	// kept are the elements whose attachment stays.
	kept []bool
	// names are the interfaces of attachments that the elements ask for in
	// other words, and changed says which words.
	names, changed []string
}

// match goes by the strongest resemblance first, so that an element never takes
// away what another one means. Elements and attachments are in order.
func match(selections []Selection, has []Attachment) (matching, error) {
	n := len(selections)
	m := matching{kept: make([]bool, n), names: make([]string, n), changed: make([]string, n)}
	asks := make([]ask, n)
	for i, s := range selections {
		var err error
		if asks[i], err = askOf(&s); err != nil {
			return m, invalid("annotation %s: element %d: %w", NetworksAnnotation, i+1, err)
		}
	}
	pairs := make([]int, n)
	for i := range pairs {
		pairs[i] = -1
	}
	var free []int // of has
	had := make([]ask, len(has))
	for j, a := range has {
		if a.isAsked() {
			free = append(free, j)
			had[j], _ = askOf(a.Asked) // what cannot be read cannot be told apart
		}
	}
	for _, alike := range resemblances {
		for i, s := range selections {
			if pairs[i] >= 0 {
				continue
			}
			network := s.Namespace + "/" + s.Name
			at := slices.IndexFunc(free, func(j int) bool {
				return has[j].Network == network && alike(asks[i], had[j], has[j].IfName)
			})
			if at >= 0 {
				pairs[i] = free[at]
				free = slices.Delete(free, at, at+1)
			}
		}
	}
	m.sort(has, asks, had, pairs)
	return m, nil
}

// sort puts every attachment where it belongs, in the order in which the pod
// has them.
func (m *matching) sort(has []Attachment, asks, had []ask, pairs []int) {
	for j, a := range has {
		i := slices.Index(pairs, j)
		switch {
		case !a.isAsked():
			m.keep = append(m.keep, a)
		case i < 0:
			m.remove = append(m.remove, a.going("no longer asked for"))
		case asks[i].same(had[j]):
			m.kept[i] = true
			m.keep = append(m.keep, a)
		default:
			m.names[i] = a.IfName
			m.changed[i] = "asked for differently now: " + strings.Join(asks[i].differences(had[j]), ", ")
			m.remove = append(m.remove, a.going(m.changed[i]))
		}
	}
}

// new are the elements to attach. One that names no interface gets the one that
// its attachment has until now, or else the first netN that nobody has or asks
// for.
func (m *matching) new(selections []Selection, taken map[string]string) []element {
	reserved := map[string]bool{}
	for i, s := range selections {
		reserved[s.IfName], reserved[m.names[i]] = true, true
	}
	var list []element
	next := 1
	for i, s := range selections {
		if m.kept[i] {
			continue
		}
		e := element{Selection: s, place: i + 1, free: m.names[i], why: "as until now"}
		for ; s.IfName == "" && e.free == ""; next++ {
			if name := fmt.Sprintf("net%d", next); taken[name] == "" && !reserved[name] {
				e.free, e.why = name, "the first that was free"
			}
		}
		list = append(list, e)
	}
	return list
}

// resemblances tell, from the strongest to the weakest, whether an element asks
// for an attachment of its network.
var resemblances = []func(element, had ask, ifName string) bool{
	func(e, _ ask, ifName string) bool { return e.ifName == ifName },
	func(e, h ask, _ string) bool { return e.ifName == "" && h.ifName == "" && e.same(h) },
	func(e, h ask, _ string) bool { return e.ifName == "" && e.same(h) },
	func(e, h ask, _ string) bool { return e.ifName == "" && h.ifName == "" },
	func(e, _ ask, _ string) bool { return e.ifName == "" },
}

// ask is what an element asks of its network, less the interface, by key.
type ask struct {
	ifName string
	// words is nil for an attachment of before attachments knew their element:
	// then nobody can tell a difference.
	words map[string]json.RawMessage
	// text is all of words, to be compared with that of many others.
	text string
}

func askOf(s *Selection) (ask, error) {
	if s == nil {
		return ask{}, nil
	}
	a := ask{ifName: s.IfName}
	anywhere := *s
	anywhere.IfName = ""
	text, err := json.Marshal(anywhere)
	if err == nil {
		err = json.Unmarshal(text, &a.words)
	}
	a.text = string(text)
	return a, err
}

func (a ask) same(b ask) bool { return a.words == nil || b.words == nil || a.text == b.text }

// differences are the keys whose values differ.
func (a ask) differences(b ask) []string {
	if a.words == nil || b.words == nil {
		return nil
	}
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(a.words)) {
		if !bytes.Equal(a.words[key], b.words[key]) {
			keys = append(keys, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b.words)) {
		if _, ok := a.words[key]; !ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// isAsked tells an attachment that the pod asked for from those that every pod
// gets. (The name of a network of the conf dir has no slash.)
func (a Attachment) isAsked() bool {
	return a.Asked != nil || !a.Default && strings.Contains(a.Network, "/")
}

// going is the attachment with the reason why it goes.
func (a Attachment) going(why string) Attachment {
	a.Reasons = slices.Clip(a.Reasons)
	a.because("%s", why)
	return a
}
