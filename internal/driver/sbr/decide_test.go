package sbr

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/rtnl"
)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"table":7}`, `{"table":0}`, `{"table":"x"}`, `{"table":9223372036854775807}`, `[]`, `{`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(driver.Spec{Conf: []byte(text), IfName: "net1"})
		if err == nil && c.Table != nil && *c.Table < 1 {
			t.Errorf("table %d is accepted", *c.Table)
		}
	})
}

const link = 7

// TestAnyCrashCanBeRepaired plays Attach on a model of a namespace up to any
// step, then once more to its end, and then Detach.
func TestAnyCrashCanBeRepaired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sources := drawSources(t)
		before := world{link: link, routes: drawRoutes(t, sources)}
		before.rules = append(before.rules, rtnl.Rule{Table: 254}, rtnl.Rule{From: netip.MustParsePrefix("192.0.2.1/32"), Table: 100})
		whole := play(before, decide(before, sources), -1)
		crashed := play(before, decide(before, sources), rapid.IntRange(0, 30).Draw(t, "steps"))
		repaired := play(crashed, decide(crashed, sources), -1)
		if !equal(whole, repaired) {
			t.Fatalf("repaired\n%v\n%v\nwant\n%v\n%v", repaired.rules, repaired.routes, whole.rules, whole.routes)
		}
		for _, w := range []world{whole, crashed} {
			after := playUndo(w, sources)
			if !equal(after, before) {
				t.Fatalf("undone\n%v\n%v\nwant\n%v\n%v", after.rules, after.routes, before.rules, before.routes)
			}
		}
		for _, r := range whole.routes {
			if whole.inMain(r) && !linkLocal(r) {
				t.Fatalf("route %s is still in the main table", r)
			}
		}
	})
}

func drawSources(t *rapid.T) []source {
	all := []source{
		{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParseAddr("10.1.0.1")},
		{netip.MustParsePrefix("10.1.0.6/24"), netip.Addr{}},
		{netip.MustParsePrefix("10.2.0.5/32"), netip.MustParseAddr("10.3.0.1")},
		{netip.MustParsePrefix("fd00:1::5/64"), netip.MustParseAddr("fd00:1::1")},
		{netip.MustParsePrefix("fd00:2::5/64"), netip.Addr{}},
	}
	return rapid.SliceOfNDistinct(rapid.SampledFrom(all), 1, len(all), func(s source) netip.Prefix { return s.Prefix }).Draw(t, "sources")
}

// drawRoutes draws routes such as a namespace with these addresses may have.
func drawRoutes(t *rapid.T, sources []source) []rtnl.Route {
	routes := []rtnl.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.244.0.1"), Link: 2, Table: rtnl.MainTable, Protocol: 3}}
	v4, v6 := false, false
	for _, s := range sources {
		v4, v6 = v4 || s.Addr().Is4(), v6 || s.Addr().Is6()
		r := rtnl.Route{Dst: s.Masked(), Link: link, Table: rtnl.MainTable, Protocol: 2, Scope: 253}
		if s.Addr().Is4() {
			r.Src = s.Addr()
		} else {
			r.Metric, r.Scope = 256, 0
		}
		routes = append(routes, r)
	}
	more := []rtnl.Route{
		{Dst: netip.MustParsePrefix("10.99.0.0/16"), Via: netip.MustParseAddr("10.1.0.1")},
		{Dst: netip.MustParsePrefix("10.98.0.0/16"), Via: netip.MustParseAddr("172.16.0.1"), OnLink: true},
		{Dst: netip.MustParsePrefix("10.97.0.0/16")},
		{Dst: netip.MustParsePrefix("fd00:99::/32"), Via: netip.MustParseAddr("fd00:1::1"), Metric: 1024},
		{Dst: netip.MustParsePrefix("fd00:98::/32"), Via: netip.MustParseAddr("fe80::1"), Metric: 1024},
		{Dst: netip.MustParsePrefix("fe80::/64"), Metric: 256, Protocol: 2},
	}
	for _, r := range more {
		if (r.Dst.Addr().Is4() && v4 || r.Dst.Addr().Is6() && v6) && rapid.Bool().Draw(t, r.Dst.String()) {
			r.Link, r.Table = link, rtnl.MainTable
			if r.Protocol == 0 {
				r.Protocol = 3
			}
			routes = append(routes, r)
		}
	}
	return unique(routes)
}

func unique(routes []rtnl.Route) (out []rtnl.Route) {
	for _, r := range routes {
		if !slices.ContainsFunc(out, func(o rtnl.Route) bool { return o.Dst == r.Dst }) {
			out = append(out, r)
		}
	}
	return out
}

// play does the first n steps of c, or all when n is negative, as apply does.
func play(w world, c changes, n int) world {
	w.rules, w.routes = slices.Clone(w.rules), slices.Clone(w.routes)
	step := func() bool { n--; return n != -1 }
	for _, r := range c.rules {
		if !step() {
			return w
		}
		w.rules = append(w.rules, r)
	}
	for _, r := range c.set {
		if !step() {
			return w
		}
		w.routes = slices.DeleteFunc(w.routes, func(o rtnl.Route) bool { return o.Dst == r.Dst && o.Table == r.Table && o.Metric == r.Metric })
		w.routes = append(w.routes, r)
	}
	for _, r := range c.remove {
		if !step() {
			return w
		}
		w.routes = slices.DeleteFunc(w.routes, func(o rtnl.Route) bool { return o == r })
	}
	return w
}

func playUndo(w world, sources []source) world {
	restore, remove, rules := undo(w, addresses(sources), nil)
	w.rules = slices.DeleteFunc(slices.Clone(w.rules), func(r rtnl.Rule) bool { return slices.Contains(rules, r) })
	w.routes = slices.DeleteFunc(slices.Clone(w.routes), func(r rtnl.Route) bool { return slices.Contains(remove, r) })
	w.routes = append(w.routes, restore...)
	return w
}

func equal(a, b world) bool {
	return sameSet(a.rules, b.rules) && sameSet(a.routes, b.routes)
}

func sameSet[T comparable](a, b []T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(v T) bool { return !slices.Contains(b, v) })
}
