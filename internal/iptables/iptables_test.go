package iptables

import (
	"context"
	"errors"
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
)

// script is a host whose programs answer what the test says.
type script func(p driver.Program) (string, error)

func (s script) Exec(_ context.Context, p driver.Program) ([]byte, error) {
	out, err := s(p)
	return []byte(out), err
}

func exit(code int) error { return &driver.ExitError{Program: "iptables", Code: code} }

func TestListTellsAbsenceFromFailure(t *testing.T) {
	for code, want := range map[int]bool{1: true, 2: true, 3: true, 4: false, 111: false} {
		table := Table{Name: "nat", Host: script(func(driver.Program) (string, error) { return "", exit(code) })}
		rules, err := table.List(t.Context(), "X")
		if _, ok := rules["X"]; ok || (err == nil) != want {
			t.Errorf("exit code %d: %v, %v", code, rules, err)
		}
	}
	gone := Table{Name: "nat", Host: script(func(driver.Program) (string, error) { return "", errors.New("not found") })}
	if _, err := gone.List(t.Context(), "X"); err == nil {
		t.Error("a program that is not there means no rules")
	}
	if _, err := (Table{Name: "nat"}).List(t.Context(), "X"); err == nil {
		t.Error("without a host there are no rules")
	}
}

// Two that make a shared chain at once: the second finds it made.
func TestChangeLooksAgainWhenItDoesNotApply(t *testing.T) {
	lists, restores := 0, 0
	table := Table{Name: "nat", Host: script(func(p driver.Program) (string, error) {
		if p.Name == "iptables-restore" {
			if restores++; restores == 1 {
				return "", exit(1)
			}
			if got := string(p.Stdin); got != "*nat\n-A X -j RETURN\nCOMMIT\n" {
				t.Errorf("restored %q", got)
			}
			return "", nil
		}
		if lists++; lists == 1 {
			return "", exit(1)
		}
		return "-N X\n-A X -s 10.0.0.1/32 -j Y\n", nil
	})}
	err := table.Change(t.Context(), []string{"X"}, func(have Rules) []string {
		if _, ok := have["X"]; !ok {
			return []string{"-N X"}
		}
		if !Jumps(have["X"][0], "Y") || Jumps(have["X"][0], "10.0.0.1/32") {
			t.Errorf("rules %q", have["X"])
		}
		return []string{"-A X -j RETURN"}
	})
	if err != nil || lists != 2 || restores != 2 {
		t.Errorf("%v after %d lists and %d changes", err, lists, restores)
	}
}

func FuzzLine(f *testing.F) {
	f.Add("--comment", `say "hi" \`)
	f.Add("-A", "a\nb")
	f.Add("", "#")
	f.Fuzz(func(t *testing.T, a, b string) {
		line, err := Line(a, b)
		if err != nil {
			return
		}
		if strings.ContainsAny(line, "\n\r\x00") {
			t.Errorf("line %q", line)
		}
		if got := words(line); len(got) != 2 || got[0] != a || got[1] != b {
			t.Errorf("%q, %q became %q: %q", a, b, line, got)
		}
	})
}

// words splits a line as iptables-restore does.
func words(line string) (out []string) {
	var word strings.Builder
	quoted, escaped, any := false, false, false
	for i := range len(line) {
		c := line[i]
		switch {
		case escaped:
			word.WriteByte(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted, any = !quoted, true
		case c == ' ' && !quoted:
			out = append(out, word.String())
			word.Reset()
			any = false
		default:
			word.WriteByte(c)
			any = true
		}
	}
	if any || word.Len() > 0 {
		out = append(out, word.String())
	}
	return out
}
