package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"braid.dev/braid/internal/e2e/recorder/note"
)

// recording is a recorder for the end of a network's list of plugins, with more
// keys of its configuration.
func (h *host) recording(more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"type":"recorder","dir":%q%s}`, h.path("recorder"), more)
}

// recordedNetwork is a network with a recorder and nothing else.
func (h *host) recordedNetwork(more string) string {
	return `{"cniVersion":"1.0.0","plugins":[` + h.recording(more) + `]}`
}

// calls are those that have been made of the recorder for a container, in
// order, each once: when it began.
func (h *host) calls(t *testing.T, containerID string) []note.Call {
	t.Helper()
	all, err := note.Read(h.path("recorder"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(c note.Call) bool { return c.Done || c.ContainerID != containerID })
}

// behave has the recorder behave in this way, well again with "" and with the
// end of the test.
func (h *host) behave(t *testing.T, verb, how string) {
	t.Helper()
	if err := note.Behave(h.path("recorder"), verb, how); err != nil {
		t.Fatal(err)
	}
}

// awaitCall waits until the recorder has been called.
func (h *host) awaitCall(t *testing.T, containerID, verb string) {
	t.Helper()
	err := within(t.Context(), 20*time.Second, "the recorder is called for "+verb, func() error {
		calls := h.calls(t, containerID)
		if !slices.ContainsFunc(calls, func(c note.Call) bool { return c.Command == verb }) {
			return fmt.Errorf("it was called %d times", len(calls))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// overlapping are the calls that began while another one for the same container
// ran (multi-net-spec 1.3, section 7.4).
func (h *host) overlapping(t *testing.T) []note.Call {
	t.Helper()
	all, err := note.Read(h.path("recorder"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(c note.Call) bool { return c.Done || !c.Beside })
}

// held is what recorders hold.
func (h *host) held(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(h.path("recorder/" + note.Held))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// runtimeConfig is what a call was given for the capabilities.
func runtimeConfig(t *testing.T, c note.Call) map[string]any {
	t.Helper()
	var conf struct{ RuntimeConfig map[string]any }
	if err := json.Unmarshal(c.Stdin, &conf); err != nil {
		t.Fatal(err)
	}
	return conf.RuntimeConfig
}
