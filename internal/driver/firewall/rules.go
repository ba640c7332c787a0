package firewall

import "net/netip"

// Names of the reference plugin, in table filter, and its comments.
const (
	tableName    = "filter"
	chainHook    = "FORWARD"
	chainForward = "CNI-FORWARD"
	chainStage1  = "CNI-ISOLATION-STAGE-1"
	chainStage2  = "CNI-ISOLATION-STAGE-2"

	remarkForward = "CNI firewall plugin rules"
	remarkAdmin   = "CNI firewall plugin admin overrides"
	remarkStages  = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"
)

// remarkPolicy is the comment of a rule of one policy.
func remarkPolicy(policy string) string {
	return "CNI firewall plugin rules (ingressPolicy: " + policy + ")"
}

// rule is a rule of either backend: what it matches, and what becomes of it.
type rule struct {
	chain string
	// first puts it before all others of the chain.
	first    bool
	to, from netip.Addr
	replies  bool // of connections that the container began
	in, out  string
	notOut   bool // out must not be it
	remark   string
	verdict  string // ACCEPT, DROP, RETURN or a chain
}

// frame are the rules that lead to the containers' rules.
func (c conf) frame() []rule {
	return []rule{
		{chain: chainHook, first: true, remark: remarkForward, verdict: chainForward},
		{chain: chainForward, first: true, remark: remarkAdmin, verdict: c.AdminChain},
	}
}

// own are the container's rules: it may send, and get answers.
func own(addrs []netip.Addr) (rules []rule) {
	for _, a := range addrs {
		rules = append(rules,
			rule{chain: chainForward, to: a, replies: true, verdict: "ACCEPT"},
			rule{chain: chainForward, from: a, verdict: "ACCEPT"})
	}
	return rules
}

// isolation are the rules of an ingress policy: nobody forwards from one
// bridge with a policy to another, nor, isolated, within one.
func (c conf) isolation(bridge string) []rule {
	if c.IngressPolicy == policyOpen {
		return nil
	}
	remark := remarkPolicy(c.IngressPolicy)
	rules := []rule{
		{chain: chainHook, first: true, remark: remarkStages, verdict: chainStage1},
		{chain: chainStage1, first: true, in: bridge, out: bridge, notOut: true, remark: remark, verdict: chainStage2},
	}
	if c.IngressPolicy == policyIsolated {
		rules = append(rules, rule{chain: chainStage1, first: true, in: bridge, out: bridge, remark: remark, verdict: "DROP"})
	}
	return append(rules,
		rule{chain: chainStage1, remark: remarkStages, verdict: "RETURN"},
		rule{chain: chainStage2, first: true, out: bridge, remark: remarkStages, verdict: "DROP"},
		rule{chain: chainStage2, remark: remarkStages, verdict: "RETURN"})
}

// shared are all rules that stay when the container goes, with or without
// the frame of the containers' rules.
func (a *attachment) shared(frame bool) []rule {
	var rules []rule
	if frame {
		rules = a.frame()
	}
	if a.IngressPolicy == policyOpen {
		return rules
	}
	bridge, err := bridgeOf(a.spec.Prev)
	if err != nil {
		return rules // parse has refused it
	}
	return append(rules, a.isolation(bridge)...)
}

// missing are those of the rules that are not there, in order. When the jump
// to the containers' rules is missing, so is that to the isolation, which must
// come before it: stale is then the one that is there.
func missing(rules []rule, there func(rule) bool) (lack []rule, stale bool) {
	hooked := true
	for _, r := range rules {
		ok := there(r)
		if r.chain == chainHook && r.verdict == chainForward {
			hooked = ok
		}
		if r.chain == chainHook && r.verdict == chainStage1 && ok && !hooked {
			ok, stale = false, true
		}
		if !ok {
			lack = append(lack, r)
		}
	}
	return lack, stale
}
