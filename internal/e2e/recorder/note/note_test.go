package note

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNoteThatWasCutOffHidesNoOther: a signal that kills ends a write in the
// middle.
func TestNoteThatWasCutOffHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	for _, command := range []string{"ADD", "DEL"} {
		if err := Append(dir, Call{Command: command}); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(dir, Calls), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("\n" + `{"Command":"CHECK","Stdin":{"cniVersion"`); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	calls, err := Read(dir)
	if err != nil || len(calls) != 2 || calls[0].Command != "ADD" || calls[1].Command != "DEL" {
		t.Errorf("Read = %+v, %v", calls, err)
	}
	if err := os.WriteFile(filepath.Join(dir, Calls), []byte("{nonsense}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if calls, err := Read(dir); err == nil {
		t.Errorf("nonsense was read as %+v", calls)
	}
}
