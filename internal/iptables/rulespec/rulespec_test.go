package rulespec_test

import (
	"slices"
	"testing"

	"braid.dev/braid/internal/iptables/rulespec"
)

func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		``:                              nil,
		"  -A\tX  ":                     {"-A", "X"},
		`-j LOG --log-prefix "a b"`:     {"-j", "LOG", "--log-prefix", "a b"},
		`--comment "say \"hi\" \\ now"`: {"--comment", `say "hi" \ now`},
		`--comment ""`:                  {"--comment", ""},
		`a"b c"d`:                       {"ab cd"},
		`back\slash`:                    {`back\slash`},
		`"never closed`:                 {"never closed"},
	} {
		if have := rulespec.Words(line); !slices.Equal(have, want) {
			t.Errorf("%s: have %q, want %q", line, have, want)
		}
	}
}
