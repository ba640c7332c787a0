package attach

import (
	"encoding/json"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/plan"
)

func TestSpec36ConfigurationKeepsWhatItsAuthorWrote(t *testing.T) {
	a := plan.Attachment{
		Config: plan.Network{Name: "vlan", CNIVersion: "0.4.0"},
		RuntimeConfig: map[string]json.RawMessage{
			"mac": json.RawMessage(`"02:00:00:00:00:01"`), "ips": json.RawMessage(`["10.0.0.1"]`), "bandwidth": json.RawMessage(`{"a":1}`),
		},
	}
	p := plan.Plugin{
		Type:         "bridge",
		Capabilities: map[string]bool{"mac": true, "ips": false, "portMappings": true},
		Conf: json.RawMessage(`{"type":"bridge","name":"other","unknown":{"z":1.0,"a":[12345678901234567890, 1e-9]},
			"x":"<&>","capabilities":{"mac":true}}`),
	}
	r, err := decodeResult(json.RawMessage(`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := complete(a, p, r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"capabilities":{"mac":true},"cniVersion":"0.4.0","name":"vlan",` +
		`"prevResult":{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/24"}],"dns":{}},` +
		`"runtimeConfig":{"mac":"02:00:00:00:00:01"},"type":"bridge",` +
		`"unknown":{"z":1.0,"a":[12345678901234567890,1e-9]},"x":"<&>"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestConfigurationThatIsNoObjectIsRefused(t *testing.T) {
	for _, conf := range []string{``, `null`, `[]`, `{`, `"x"`} {
		if got, err := complete(plan.Attachment{}, plan.Plugin{Conf: json.RawMessage(conf)}, nil); err == nil {
			t.Errorf("%q became %s", conf, got)
		}
	}
}

func TestSpec36PrevResultForOldVersions(t *testing.T) {
	r := &current.Result{CNIVersion: "1.1.0"}
	for version, want := range map[string]bool{"": false, "0.3.1": false, "0.4.0": true, "1.1.0": true} {
		got := prevForLater(plan.Attachment{Config: plan.Network{CNIVersion: version}}, r)
		if (got != nil) != want {
			t.Errorf("cniVersion %q: prevResult on DEL: %v", version, got != nil)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []struct{ runtime, own, want string }{
		{"", "", ""},
		{"A=1;", "", "A=1"},
		{"", "IP=10.0.0.1/24", "IgnoreUnknown=1;IP=10.0.0.1/24"},
		{"IgnoreUnknown=1;K8S_POD_NAME=x;", "IP=1", "IgnoreUnknown=1;K8S_POD_NAME=x;IP=1"},
		{"K8S_POD_NAME=x=y", "IP=1;MAC=2", "IgnoreUnknown=1;K8S_POD_NAME=x=y;IP=1;MAC=2"},
	} {
		if got := args(c.runtime, c.own); got != c.want {
			t.Errorf("args(%q, %q) = %q, want %q", c.runtime, c.own, got, c.want)
		}
	}
}

func FuzzComplete(f *testing.F) {
	f.Add([]byte(`{"type":"bridge","x":1.50}`), "1.0.0")
	f.Add([]byte(`{"a":{"b":[null,true]}}`), "")
	f.Fuzz(func(t *testing.T, conf []byte, version string) {
		a := plan.Attachment{Config: plan.Network{Name: "n", CNIVersion: version}}
		got, err := complete(a, plan.Plugin{Conf: conf}, &current.Result{CNIVersion: "1.1.0"})
		if err != nil {
			return
		}
		var back map[string]json.RawMessage
		if err := json.Unmarshal(got, &back); err != nil || string(back["name"]) != `"n"` {
			t.Fatalf("%s became %s: %v", conf, got, err)
		}
	})
}
