// Package rulespec reads rules as iptables prints and takes them.
package rulespec

import "strings"

// Words splits a rule at blanks outside of double quotes, as iptables-restore
// does; inside of quotes a backslash takes the next character as it is.
func Words(line string) (words []string) {
	var word strings.Builder
	quoted, escaped, some := false, false, false
	for i := range len(line) {
		c := line[i]
		switch {
		case escaped:
			word.WriteByte(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted, some = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if some {
				words = append(words, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteByte(c)
			some = true
		}
	}
	if some {
		words = append(words, word.String())
	}
	return words
}
