package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// member is one key of a JSON object with its value as it was written, which
// is object[start:end]. Working on the text keeps every key that Braid does
// not know, the order of keys and the precision of numbers.
type member struct {
	key        string
	value      json.RawMessage
	start, end int
}

// members splits a JSON object.
func members(object []byte) ([]member, error) {
	start, err := enter(object, '{')
	if err != nil {
		return nil, err
	}
	var ms []member
	for at := start; object[at] != '}'; {
		end := valueEnd(object, at)
		var m member
		if err := json.Unmarshal(object[at:end], &m.key); err != nil {
			return nil, atOffset(object, err)
		}
		m.start = space(object, space(object, end)+1) // behind the colon
		m.end = valueEnd(object, m.start)
		m.value = object[m.start:m.end:m.end]
		ms = append(ms, m)
		at = next(object, m.end)
	}
	return ms, nil
}

// elements splits a JSON array of most elements at most, 0 for any number.
func elements(array []byte, most int) ([]json.RawMessage, error) {
	start, err := enter(array, '[')
	if err != nil {
		return nil, err
	}
	var list []json.RawMessage
	count := 0
	for at := start; array[at] != ']'; count++ {
		end := valueEnd(array, at)
		if most == 0 || count < most {
			list = append(list, array[at:end:end])
		}
		at = next(array, end)
	}
	if most > 0 && count > most {
		return nil, fmt.Errorf("%d elements are too many; %d are allowed", count, most)
	}
	return list, nil
}

// maxDepth is how deep the JSON that people write may be nested. Configurations
// are a few levels deep; plugins in other languages have limits of their own.
const maxDepth = 64

// shallow refuses text that is nested too deep to be handed on. It counts
// brackets outside of strings and verifies nothing else.
func shallow(text []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("nested more than %d levels deep", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// enter verifies that text is exactly one JSON object or array and returns
// where its first element, or its closing bracket, begins.
func enter(text []byte, open byte) (int, error) {
	if !json.Valid(text) {
		var whole json.RawMessage
		return 0, atOffset(text, json.Unmarshal(text, &whole))
	}
	at := space(text, 0)
	if text[at] != open {
		want := "an object { }"
		if open == '[' {
			want = "a list [ ]"
		}
		return 0, fmt.Errorf("want %s, have %s", want, kind(text))
	}
	return space(text, at+1), nil
}

// next is where, in valid JSON, the element behind the one that ends at end
// begins, or the closing bracket is.
func next(text []byte, end int) int {
	end = space(text, end)
	if text[end] == ',' {
		end = space(text, end+1)
	}
	return end
}

// space is the first place from at on that is not white space.
func space(text []byte, at int) int {
	for at < len(text) && (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r') {
		at++
	}
	return at
}

// valueEnd is where, in valid JSON, the value that begins at start ends.
func valueEnd(text []byte, start int) int {
	depth := 0
	for at := start; at < len(text); at++ {
		switch text[at] {
		case '"':
			for at++; text[at] != '"'; at++ {
				if text[at] == '\\' {
					at++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return at // a number or a word, the last of its container
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return at
			}
			continue
		default:
			continue
		}
		if depth == 0 {
			return at + 1
		}
	}
	return len(text)
}

// lookup returns the value of a key. The last one counts when the author wrote
// it twice, as for every reader of JSON in CNI.
func lookup(ms []member, key string) (json.RawMessage, bool) {
	for i := len(ms) - 1; i >= 0; i-- {
		if ms[i].key == key {
			return ms[i].value, true
		}
	}
	return nil, false
}

// setMember is setMembers for one key.
func setMember(object []byte, key string, value []byte) ([]byte, error) {
	return setMembers(object, []member{{key: key, value: value}})
}

// setMembers returns object with the keys of set, each once, set to their
// values and every other byte as it was. It never writes into object.
func setMembers(object []byte, set []member) ([]byte, error) {
	ms, err := members(object)
	if err != nil {
		return nil, err
	}
	last := map[string]int{} // the one that counts of a key that is written twice
	for i, m := range ms {
		last[m.key] = i
	}
	replace := map[int]json.RawMessage{}
	var added []byte
	for _, m := range set {
		if i, there := last[m.key]; there {
			replace[i] = m.value
			continue
		}
		quoted, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		added = append(append(append(append(added, ','), quoted...), ':'), m.value...)
	}
	at := bytes.LastIndexByte(object, '}')
	if len(ms) == 0 {
		added = bytes.TrimPrefix(added, []byte{','})
	} else {
		at = ms[len(ms)-1].end
	}
	out := make([]byte, 0, len(object)+len(added))
	from := 0
	for i, m := range ms {
		if value, ok := replace[i]; ok {
			out = append(append(out, object[from:m.start]...), value...)
			from = m.end
		}
	}
	out = append(append(out, object[from:at]...), added...)
	return append(out, object[at:]...), nil
}

// atOffset adds the place to an error of encoding/json.
func atOffset(text []byte, err error) error {
	offset := int64(-1)
	var syntax *json.SyntaxError
	var mistype *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset - 1 // Offset counts the offending byte too
		if syntax.Error() == "unexpected end of JSON input" {
			offset++ // there is none
		}
	case errors.As(err, &mistype):
		offset = mistype.Offset - 1
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		offset = int64(len(text))
	default:
		return fmt.Errorf("broken JSON: %w", err)
	}
	offset = max(0, min(offset, int64(len(text))))
	if len(bytes.TrimSpace(text)) == 0 {
		return fmt.Errorf("broken JSON: nothing but white space")
	}
	before := text[:offset]
	line := 1 + bytes.Count(before, []byte{'\n'})
	column := 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	return fmt.Errorf("broken JSON at %d:%d: %w", line, column, err)
}

// kind names the type of a valid JSON value for a person.
func kind(value json.RawMessage) string {
	value = bytes.TrimSpace(value)
	if len(value) == 0 {
		return "nothing"
	}
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// isNull tells whether a value is absent or null, which mean the same in every
// configuration Braid reads.
func isNull(value json.RawMessage) bool {
	return len(value) == 0 || bytes.Equal(bytes.TrimSpace(value), []byte("null"))
}

// stringOf reads a string; null and absent are empty.
func stringOf(value json.RawMessage) (string, error) {
	if isNull(value) {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", fmt.Errorf("want a string, have %s", kind(value))
	}
	return s, nil
}

// strict reads an object into a struct and refuses keys that it does not have.
func strict(value json.RawMessage, to any) error {
	if kind(value) != "an object" {
		return fmt.Errorf("have %s", kind(value))
	}
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	return dec.Decode(to)
}

// quote shows what somebody else wrote, shortened: it may be long and is read
// in an event of Kubernetes.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		return fmt.Sprintf("%q…", s[:cut])
	}
	return fmt.Sprintf("%q", s)
}
