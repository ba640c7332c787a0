package portmap

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/nft"
)

// parseConditions translates conditions in the language of nftables, of which
// it knows what a port mapping may want to look at: addresses, links, marks
// and source ports, compared with one value.
func (c *conf) parseConditions() error {
	c.nftables = map[bool][]expr.Any{}
	for _, is6 := range []bool{false, true} {
		key := map[bool]string{false: "conditionsV4", true: "conditionsV6"}[is6]
		p := conditionParser{words: strings.Fields(strings.Join(c.conditions(is6), " ")), is6: is6}
		for len(p.words) > 0 {
			exprs, err := p.next()
			if err != nil {
				return fmt.Errorf("%s: %w (understood are [ip|ip6] saddr|daddr, iifname, oifname, mark, and "+
					"tcp|udp|sctp sport|dport, each with an optional == or != and one value)", key, err)
			}
			c.nftables[is6] = append(c.nftables[is6], exprs...)
		}
	}
	return nil
}

type conditionParser struct {
	words []string
	is6   bool
}

func (p *conditionParser) take() string {
	if len(p.words) == 0 {
		return ""
	}
	word := p.words[0]
	p.words = p.words[1:]
	return word
}

// next reads one condition.
func (p *conditionParser) next() ([]expr.Any, error) {
	word := p.take()
	switch word {
	case "meta":
		word = p.take()
	case "ip", "ip6":
		if (word == "ip6") != p.is6 {
			return nil, fmt.Errorf("%s is the other address family", word)
		}
		word = p.take()
		if word != "saddr" && word != "daddr" {
			return nil, fmt.Errorf("%q is not known", word)
		}
	case "tcp", "udp", "sctp":
		return p.port(protocols[word], p.take())
	}
	op, value := p.comparison()
	switch word {
	case "saddr":
		return p.addr(nft.Source, op, value)
	case "daddr":
		return p.addr(nft.Destination, op, value)
	case "iifname", "oifname":
		return link(word, op, strings.Trim(value, `"`))
	case "mark":
		mark, err := strconv.ParseUint(value, 0, 32)
		if err != nil {
			return nil, fmt.Errorf("mark %q is no number of 32 bits", value)
		}
		return nft.Mark(op, uint32(mark)), nil
	}
	return nil, fmt.Errorf("%q is not known", word)
}

func (p *conditionParser) comparison() (expr.CmpOp, string) {
	switch word := p.take(); word {
	case "!=":
		return expr.CmpOpNeq, p.take()
	case "==":
		return expr.CmpOpEq, p.take()
	default:
		return expr.CmpOpEq, word
	}
}

func (p *conditionParser) addr(side nft.Side, op expr.CmpOp, value string) ([]expr.Any, error) {
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(value); err == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
	}
	if err != nil || prefix.Addr().Is6() != p.is6 || prefix.Addr().Zone() != "" {
		return nil, fmt.Errorf("%q is no address or prefix of this family", value)
	}
	return nft.Addr(side, op, prefix), nil
}

func (p *conditionParser) port(protocol byte, which string) ([]expr.Any, error) {
	op, value := p.comparison()
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is no port", value)
	}
	switch which {
	case "sport":
		return nft.Join(nft.Protocol(protocol), nft.Port(nft.Source, op, uint16(port))), nil
	case "dport":
		return nft.Join(nft.Protocol(protocol), nft.Port(nft.Destination, op, uint16(port))), nil
	}
	return nil, fmt.Errorf("%q is not known", which)
}

func link(which string, op expr.CmpOp, name string) ([]expr.Any, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ || strings.ContainsAny(name, `*{}`) {
		return nil, fmt.Errorf("%q is no name of one link", name)
	}
	if which == "oifname" {
		return nft.Out(op, name), nil
	}
	return nft.In(op, name), nil
}
