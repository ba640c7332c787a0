package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"braid.dev/braid/internal/wire"
)

func TestUnreadableInputIsAnInputFailure(t *testing.T) {
	getenv := func(name string) string {
		return map[string]string{"CNI_COMMAND": "GC"}[name]
	}
	if _, e := readRequest(getenv, iotest.ErrReader(iotest.ErrTimeout)); e == nil || e.Code != wire.CodeIO {
		t.Errorf("%+v, want code %d", e, wire.CodeIO)
	}
}

func TestPatienceFollowsTheConfiguration(t *testing.T) {
	for name, test := range map[string]struct {
		command string
		timeout int
		want    patience
	}{
		"ADD":                {"ADD", 0, patience{120 * time.Second, 120 * time.Second, 120 * time.Second}},
		"ADD, as configured": {"ADD", 300, patience{300 * time.Second, 300 * time.Second, 300 * time.Second}},
		"DEL":                {"DEL", 0, patience{120 * time.Second, 10 * time.Second, 60 * time.Second}},
		"DEL, a short one":   {"DEL", 2, patience{2 * time.Second, time.Second, time.Second}},
		"GC":                 {"GC", 300, patience{300 * time.Second, 20 * time.Second, 60 * time.Second}},
		"STATUS":             {"STATUS", 0, patience{total: 4 * time.Second}},
		"STATUS, less":       {"STATUS", 2, patience{total: 2 * time.Second}},
		"STATUS, more":       {"STATUS", 300, patience{total: 4 * time.Second}},
		"REACH":              {"REACH", 3600, patience{total: time.Hour}},
	} {
		got := patienceFor(request{Request: wire.Request{Command: test.command}, conf: conf{Timeout: test.timeout}})
		if got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	if left := 120 * time.Second; left-reserve(left) != 105*time.Second {
		t.Errorf("of %v, %v are kept", left, reserve(left))
	}
}

func FuzzReadRequest(f *testing.F) {
	f.Add("ADD", "c", "/run/netns/x", "eth0", []byte(`{"cniVersion":"1.0.0","name":"n","socket":"/s","timeout":1}`))
	f.Add("GC", "", "", "", []byte(`{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}`))
	f.Add("STATUS", "", "", "", []byte("null"))
	f.Add("DEL", "-", "", "a\xffb", []byte("[]"))
	f.Fuzz(func(t *testing.T, command, container, netns, ifName string, stdin []byte) {
		env := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifName}
		r, failure := readRequest(func(name string) string { return env[name] }, bytes.NewReader(stdin))
		if failure != nil {
			if failure.Code == 0 || failure.Msg == "" {
				t.Fatalf("unclear: %+v", failure)
			}
			return
		}
		if !bytes.Equal(r.Stdin, stdin) {
			t.Fatal("the configuration was changed")
		}
		if r.Command == "ADD" && (strings.Contains(r.ContainerID, "/") || len(r.IfName) > 15 || r.NetNS == "") {
			t.Fatalf("accepted %+v", r.Request)
		}
		if p := patienceFor(r); p.total <= 0 || p.total > maxTimeout {
			t.Fatalf("patience %+v", p)
		}
	})
}
