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

// behave has the recorder behave in this way when it is called with the verb, or
// verb and interface as in ADD-net1, and well again with "".
func (h *host) behave(t *testing.T, call, how string) {
	t.Helper()
	if err := note.Behave(h.path("recorder"), call, how); err != nil {
		t.Fatal(err)
	}
}

// awaitCall waits until the recorder has been called so.
func (h *host) awaitCall(t *testing.T, containerID, verb, ifName string) {
	t.Helper()
	h.awaitCalls(t, containerID, verb, ifName, 1)
}

// awaitCalls waits until the recorder has been called so often.
func (h *host) awaitCalls(t *testing.T, containerID, verb, ifName string, times int) {
	t.Helper()
	err := within(t.Context(), 20*time.Second, "the recorder is called for "+verb+" of "+ifName, func() error {
		n := 0
		for _, c := range h.calls(t, containerID) {
			if c.Command == verb && c.IfName == ifName {
				n++
			}
		}
		if n < times {
			return fmt.Errorf("it was called %d times", n)
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
