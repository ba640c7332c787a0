package plan_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/plan"
)

// recorded is what records give back of a plan, a restart later.
func recorded(t *testing.T, in plan.Input) []plan.Attachment {
	t.Helper()
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return reread(t, p.Attachments)
}

func reread(t *testing.T, list []plan.Attachment) (again []plan.Attachment) {
	t.Helper()
	text, err := json.Marshal(list)
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// changeText is a change, one attachment a line.
func changeText(c plan.Change) string {
	var b strings.Builder
	for _, part := range []struct {
		what string
		list []plan.Attachment
	}{{"keep", c.Keep}, {"remove", c.Remove}, {"add", c.Add}} {
		for _, a := range part.list {
			if a.Default {
				continue
			}
			fmt.Fprintf(&b, "%s %s %s", part.what, a.IfName, a.Network)
			if len(a.IPs) > 0 {
				fmt.Fprintf(&b, " %s", strings.Join(a.IPs, " "))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestChangeOfARunningPod(t *testing.T) {
	for name, c := range map[string]struct{ was, is, want string }{
		"the same":           {"a,b", "a,b", "keep net1 default/a\nkeep net2 default/b\n"},
		"another form":       {"a,b@data", `[{"name":"a"},{"name":"b","interface":"data","namespace":"default"}]`, "keep net1 default/a\nkeep data default/b\n"},
		"another order":      {"a,b", "b,a", "keep net1 default/a\nkeep net2 default/b\n"},
		"one more":           {"a", "a,b", "keep net1 default/a\nadd net2 default/b\n"},
		"the first one":      {"", "a", "add net1 default/a\n"},
		"one more in front":  {"a", "b,a", "keep net1 default/a\nadd net2 default/b\n"},
		"one less":           {"a,b,c", "a,c", "keep net1 default/a\nkeep net3 default/c\nremove net2 default/b\n"},
		"none left":          {"a,b", "", "remove net1 default/a\nremove net2 default/b\n"},
		"a gap is filled":    {"a,b,c@net4", "b,c@net4,d,e,f", "keep net2 default/b\nkeep net4 default/c\nremove net1 default/a\nadd net1 default/d\nadd net3 default/e\nadd net5 default/f\n"},
		"a name is wanted":   {"a", "a,b,c@net2", "keep net1 default/a\nadd net3 default/b\nadd net2 default/c\n"},
		"a name moves":       {"a@x", "b@x", "remove x default/a\nadd x default/b\n"},
		"a name is given up": {"a@x", "a", "keep x default/a\n"},
		"a name that it has": {"a", "a@net1", "keep net1 default/a\n"},
		"a new name":         {"a", "a@x", "remove net1 default/a\nadd x default/a\n"},
		"twice":              {"a", "a,a", "keep net1 default/a\nadd net2 default/a\n"},
		"twice becomes once": {"a,a", "a", "keep net1 default/a\nremove net2 default/a\n"},
		"the named one goes": {"a@x,a", "a", "keep net2 default/a\nremove x default/a\n"},
		"another namespace":  {"a", "other/a", "remove net1 default/a\nadd net1 other/a\n"},
		"another address": {
			`[{"name":"a","ips":["10.0.0.1/24"]},{"name":"b"}]`, `[{"name":"a","ips":["10.0.0.2/24"]},{"name":"b"}]`,
			"keep net2 default/b\nremove net1 default/a 10.0.0.1/24\nadd net1 default/a 10.0.0.2/24\n",
		},
		"another address of a named one": {
			`[{"name":"a","interface":"x"}]`, `[{"name":"a","interface":"x","mac":"02:00:00:00:00:01"}]`,
			"remove x default/a\nadd x default/a\n",
		},
		"the second of a kind stays": {
			`[{"name":"a","ips":["10.0.0.1/24"]},{"name":"a","ips":["10.0.0.2/24"]}]`, `[{"name":"a","ips":["10.0.0.2/24"]}]`,
			"keep net2 default/a 10.0.0.2/24\nremove net1 default/a 10.0.0.1/24\n",
		},
		"an address moves": {
			`[{"name":"a","ips":["10.0.0.1/24"]}]`, `[{"name":"b","ips":["10.0.0.1/24"]}]`,
			"remove net1 default/a 10.0.0.1/24\nadd net1 default/b 10.0.0.1/24\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := plan.ChangeOf(input(c.is), recorded(t, input(c.was)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, changeText(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChangeSaysWhy(t *testing.T) {
	got, err := plan.ChangeOf(input(`[{"name":"a","ips":["10.0.0.2/24"]},{"name":"c"}]`), recorded(t, input("a,b")))
	if err != nil {
		t.Fatal(err)
	}
	last := func(a plan.Attachment) string { return a.Reasons[len(a.Reasons)-1] }
	if len(got.Remove) != 2 || len(got.Add) != 2 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []string{"asked for differently now: ips", "no longer asked for"} {
		if last(got.Remove[i]) != want {
			t.Errorf("removed: %q", got.Remove[i].Reasons)
		}
	}
	if text := strings.Join(got.Add[0].Reasons, "\n"); !strings.Contains(text, "interface net1: as until now") || !strings.Contains(text, "attached anew: asked for differently now: ips") {
		t.Errorf("added: %s", text)
	}
	if text := strings.Join(got.Add[1].Reasons, "\n"); !strings.Contains(text, "interface net2: the first that was free") {
		t.Errorf("added: %s", text)
	}
}

// The records hold: what has become of a definition changes nothing.
func TestChangedOrMissingDefinitionLeavesTheAttachment(t *testing.T) {
	has := recorded(t, input("a,b"))
	in := input("a")
	in.Definition = func(string, string) (plan.Definition, bool) { return plan.Definition{}, false }
	in.Default = plan.Network{} // nor is there a default network today
	got, err := plan.ChangeOf(in, has)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("keep net1 default/a\nremove net2 default/b\n", changeText(got)); diff != "" {
		t.Error(diff)
	}
	if !reflect.DeepEqual(got.Keep, has[:2]) {
		t.Errorf("kept %+v\nof   %+v", got.Keep, has)
	}
}

func TestNetworksThatEveryPodGetsDoNotChange(t *testing.T) {
	in := input("a")
	in.ConfDirNetworks = 2
	in.Beside = []plan.Network{network(t, []byte(`{"cniVersion":"1.0.0","name":"second","type":"bridge"}`), "")}
	has := recorded(t, in)
	edited := input("")
	edited.Pod.Annotations[plan.DefaultNetworkAnnotation] = "kube-system/other"
	got, err := plan.ChangeOf(edited, has)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("keep eth1 second\nremove net1 default/a\n", changeText(got)); diff != "" {
		t.Error(diff)
	}
	edited = input("a@eth1")
	if _, err := plan.ChangeOf(edited, has); err == nil || !strings.Contains(err.Error(), "already belongs to network second of the conf dir") {
		t.Errorf("a taken name: %v", err)
	}
}

func TestNewNetworkGetsADeviceThatNoKeptOneHas(t *testing.T) {
	pod := func(networks string, devices ...string) plan.Input {
		in := input(networks)
		define := in.Definition
		in.Definition = func(namespace, name string) (plan.Definition, bool) {
			d, ok := define(namespace, name)
			d.ResourceName = "example.com/vf"
			return d, ok
		}
		in.Devices = func(resource string) ([]plan.Device, error) { return deviceList(resource, devices), nil }
		return in
	}
	has := recorded(t, pod("a,b", "vf0", "vf1"))
	for _, c := range []struct{ is, want string }{
		{"a,b,c", "vf2"}, // the others stay where they are
		{"b,c", "vf0"},   // what goes makes room
		{"a,c,c", "vf1 vf2"},
	} {
		got, err := plan.ChangeOf(pod(c.is, "vf0", "vf1", "vf2"), has)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, a := range got.Add {
			ids = append(ids, a.Device.ID)
		}
		if text := strings.Join(ids, " "); text != c.want {
			t.Errorf("%s: the new networks get %s, want %s", c.is, text, c.want)
		}
	}
	if _, err := plan.ChangeOf(pod("a,b,c", "vf0", "vf1"), has); err == nil || !strings.Contains(err.Error(), "more networks than devices (2)") {
		t.Errorf("a third network of two devices: %v", err)
	}
}

func TestAttachmentFromBeforeItsElementWasRecordedStays(t *testing.T) {
	has := recorded(t, input(`[{"name":"a","ips":["10.0.0.1/24"]},{"name":"b"}]`))
	for i := range has {
		has[i].Asked = nil
	}
	got, err := plan.ChangeOf(input("a"), has)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("keep net1 default/a 10.0.0.1/24\nremove net2 default/b\n", changeText(got)); diff != "" {
		t.Error(diff)
	}
}

func TestChangeThatCannotBeGivenIsRefusedWhole(t *testing.T) {
	for name, c := range map[string]struct {
		was, is, words string
		code           uint
	}{
		"broken annotation":         {"a", `[{"name":`, "annotation k8s.v1.cni.cncf.io/networks", types.ErrInvalidNetworkConfig},
		"null":                      {"a", `[null]`, "element 1", types.ErrInvalidNetworkConfig},
		"missing network":           {"a", "a,missing", "no NetworkAttachmentDefinition", types.ErrTryAgainLater},
		"undeclared capability":     {"a", `[{"name":"a"},{"name":"b","bandwidth":{"ingressRate":1000}}]`, "bandwidth", types.ErrInvalidNetworkConfig},
		"taken name":                {"a", "a,b@net1", "interface net1 already belongs to network default/a", types.ErrInvalidNetworkConfig},
		"name of the default":       {"a", "a,b@eth0", "interface eth0 already belongs to the default network", types.ErrInvalidNetworkConfig},
		"default route for a new":   {"a", `[{"name":"a"},{"name":"b","default-route":["10.0.0.1"]}]`, "default route of a pod that runs", types.ErrInvalidNetworkConfig},
		"default route for an old":  {"a", `[{"name":"a","default-route":[]}]`, "default route of a pod that runs", types.ErrInvalidNetworkConfig},
		"default route goes":        {`[{"name":"a","default-route":["10.0.0.1"]}]`, "", "default route of a pod that runs", types.ErrInvalidNetworkConfig},
		"default route is given up": {`[{"name":"a","default-route":["10.0.0.1"]}]`, "a", "default route of a pod that runs", types.ErrInvalidNetworkConfig},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(c.is)
			define := in.Definition
			in.Definition = func(namespace, name string) (plan.Definition, bool) {
				d, _ := define(namespace, name)
				return d, name != "missing"
			}
			got, err := plan.ChangeOf(in, recorded(t, input(c.was)))
			var e *plan.Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v; want code %d and %q", err, c.code, c.words)
			}
			if !reflect.DeepEqual(got, plan.Change{}) {
				t.Errorf("beside the error: %s", changeText(got))
			}
		})
	}
}

// FuzzChangeOf edits one annotation into another.
func FuzzChangeOf(f *testing.F) {
	for i, c := range goodAnnotations {
		f.Add(goodAnnotations[(i+1)%len(goodAnnotations)].annotation, c.annotation)
	}
	f.Add("a,a@x,b", `[{"name":"a","interface":"net2"},{"name":"b","cni-args":{"a":1.0}}]`)
	f.Add(`[{"name":"a","cni-args":{"x":{"y":[1,null]}}},{"name":"a"}]`, "a,b@net1")
	f.Fuzz(func(t *testing.T, was, is string) {
		before, err := plan.Build(input(was))
		if err != nil {
			return
		}
		has := reread(t, before.Attachments)
		if c, err := plan.ChangeOf(input(was), has); err != nil || !c.Nothing() || !reflect.DeepEqual(c.Keep, has) {
			t.Fatalf("%q changes into itself by %s, %v", was, changeText(c), err)
		}
		c, err := plan.ChangeOf(input(is), has)
		if err != nil {
			if !reflect.DeepEqual(c, plan.Change{}) {
				t.Fatalf("beside the error %v: %s", err, changeText(c))
			}
			return
		}
		changed := reread(t, slices.Concat(c.Keep, c.Add))
		names := map[string]bool{}
		for _, a := range changed {
			if names[a.IfName] || a.IfName == "" {
				t.Fatalf("%q into %q gives %q twice:\n%s", was, is, a.IfName, changeText(c))
			}
			names[a.IfName] = true
		}
		if len(c.Keep)+len(c.Remove) != len(has) {
			t.Fatalf("%q into %q forgets or invents attachments:\n%s", was, is, changeText(c))
		}
		if again, err := plan.ChangeOf(input(is), changed); err != nil || !again.Nothing() {
			t.Fatalf("%q is not reached from %q: after\n%sthere is still\n%s%v", is, was, changeText(c), changeText(again), err)
		}
	})
}
