package plan

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzMembers splits objects and arrays, and compares the pieces with what the
// standard library's decoder finds.
func FuzzMembers(f *testing.F) {
	for _, text := range []string{
		`{}`, `[]`, ` { } `, `{"a":1}`, `[1,2]`, "{\n \"a\" : {\"b\":[1,{}]} ,\t\"c\":null}", `{"a":"x\"}","\u0061":"y\\"}`, `[[],{},"[",-1e5,true]`,
		`{"a":1,"a":2}`, `{"":{}}`, "{\"\xff\":\"\xfe\"}", `{"a":1`, `[1,]`, `1`, ``, `null`, `{"a":1} x`, `["\\"]`, `[1 , 2 ]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ms, err := members(text)
		var want map[string]json.RawMessage
		errWant := json.Unmarshal(text, &want)
		if (err == nil) != (errWant == nil && want != nil) {
			t.Fatalf("members: %v, the decoder: %v", err, errWant)
		}
		for _, m := range ms {
			last, ok := lookup(ms, m.key)
			if !ok || !bytes.Equal(last, want[m.key]) || !bytes.Equal(m.value, text[m.start:m.end]) || !json.Valid(m.value) {
				t.Fatalf("member %q is %q, the decoder has %q", m.key, m.value, want[m.key])
			}
		}
		for key := range want {
			if _, ok := lookup(ms, key); !ok {
				t.Fatalf("member %q is missing", key)
			}
		}
		list, err := elements(text, 0)
		var wantList []json.RawMessage
		errWant = json.Unmarshal(text, &wantList)
		if (err == nil) != (errWant == nil && wantList != nil) || len(list) != len(wantList) {
			t.Fatalf("elements: %q, %v, the decoder: %q, %v", list, err, wantList, errWant)
		}
		for i := range list {
			if !bytes.Equal(list[i], wantList[i]) {
				t.Fatalf("element %d is %q, the decoder has %q", i, list[i], wantList[i])
			}
		}
		if ms != nil {
			checkSet(t, text, ms)
		}
	})
}

// checkSet replaces one member and adds another.
func checkSet(t *testing.T, object []byte, ms []member) {
	t.Helper()
	before := bytes.Clone(object)
	set := []member{{key: ms[0].key, value: []byte(`"set"`)}}
	if _, there := lookup(ms, "new <key>"); !there {
		set = append(set, member{key: "new <key>", value: []byte(`[7]`)})
	}
	out, err := setMembers(object, set)
	if err != nil || !bytes.Equal(before, object) {
		t.Fatalf("%q became %q, %v", before, object, err)
	}
	var have map[string]json.RawMessage
	if err := json.Unmarshal(out, &have); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	for _, m := range set {
		if string(have[m.key]) != string(m.value) {
			t.Fatalf("%q holds %q as %q", out, have[m.key], m.key)
		}
	}
}
