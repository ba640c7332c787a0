package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"braid.dev/braid/internal/wire"
)

// crossing is a node in the middle of a migration whose plugins write down what
// they were asked.
type crossing struct {
	t          *testing.T
	bin, cache string
	from, to   string
	admit      string
}

const (
	oldNet = `{"cniVersion":"0.4.0","name":"old","plugins":[
		{"type":"old1","mtu":12345678901234567890},
		{"type":"old2","capabilities":{"portMappings":true,"ips":false}}]}`
	newNet = `{"cniVersion":"1.0.0","name":"new","plugins":[
		{"type":"new1","capabilities":{"ips":true}},
		{"type":"new2","capabilities":{"portMappings":true}}]}`
	oldResult = `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.2/24"}]}`
	newResult = `{"cniVersion":"1.0.0","ips":[{"address":"10.2.0.2/24"}],"dns":{}}`
)

func newCrossing(t *testing.T) crossing {
	t.Helper()
	c := crossing{t: t, bin: t.TempDir(), cache: t.TempDir(), from: oldNet, to: newNet, admit: "all"}
	for name, result := range map[string]string{"old1": oldResult, "old2": oldResult, "new1": newResult, "new2": newResult} {
		c.plugin(name, fmt.Sprintf(`[ $CNI_COMMAND = ADD ] && echo '%s'; exit 0`, result))
	}
	if err := os.Mkdir(filepath.Join(c.cache, "results"), 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// plugin makes a plugin that writes down how it was called, then does body.
func (c crossing) plugin(name, body string) {
	c.t.Helper()
	script(c.t, c.bin, name, fmt.Sprintf(`{ printf '%s %%s %%s\t' "$CNI_COMMAND" "$CNI_ARGS"; cat; echo; } >> %s/log; %s`, name, c.bin, body))
}

// told is one call of a plugin.
type told struct {
	plugin, verb, args string
	conf               map[string]any
}

// told returns the calls since the last time.
func (c crossing) told() []told {
	c.t.Helper()
	path := filepath.Join(c.bin, "log")
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		c.t.Fatal(err)
	}
	var all []told
	for line := range strings.Lines(string(data)) {
		head, conf, _ := strings.Cut(line, "\t")
		fields := strings.SplitN(head, " ", 3)
		call := told{plugin: fields[0], verb: fields[1], args: fields[2]}
		decoder := json.NewDecoder(strings.NewReader(conf))
		decoder.UseNumber()
		if err := decoder.Decode(&call.conf); err != nil {
			c.t.Fatalf("%q: %v", line, err)
		}
		all = append(all, call)
	}
	return all
}

// names are the plugins that were called, in order.
func names(calls []told) string {
	var all []string
	for _, c := range calls {
		all = append(all, c.plugin)
	}
	return strings.Join(all, " ")
}

// conf is the configuration that the runtime has loaded.
func (c crossing) conf() string {
	var to list
	if err := json.Unmarshal([]byte(c.to), &to); err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprintf(`"cniVersion":%q,"name":%q,"type":"braid-cni","capabilities":{"ips":true,"portMappings":true},
		"switch":{"from":%s,"to":%s,"admit":%q,"probes":"braid-migrate","message":"please wait","cacheDir":%q}`,
		to.CNIVersion, to.Name, c.from, c.to, c.admit, c.cache)
}

// ask is a request of the runtime. more are keys such as `,"prevResult":{}`.
func (c crossing) ask(verb, more string) ran {
	c.t.Helper()
	stdin := "{" + c.conf() + more + "}"
	return call{verb: verb, env: []string{"CNI_PATH=/nowhere:" + c.bin}, stdin: &stdin}.run(c.t)
}

// remember writes what libcni remembers of an attachment.
func (c crossing) remember(name, conf, result string) string {
	c.t.Helper()
	path := filepath.Join(c.cache, "results", name+"-abc-1-eth0")
	write(c.t, path, fmt.Sprintf(`{"kind":"cniCacheV1","containerId":"abc-1","config":%q,"ifName":"eth0","networkName":%q,
		"cniArgs":[["K8S_POD_NAME","then"],["IgnoreUnknown","1"]],"capabilityArgs":{"portMappings":["then"]},"result":%s}`,
		base64.StdEncoding.EncodeToString([]byte(conf)), name, result), 0o600)
	return path
}

func (o ran) succeeded(t *testing.T) {
	t.Helper()
	if o.code != 0 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
}

func TestAnAdmittedPodGetsTheNetworkThatIsToCome(t *testing.T) {
	c := newCrossing(t)
	o := c.ask("ADD", `,"runtimeConfig":{"ips":["10.2.0.9"],"portMappings":[1],"mac":"x"}`)
	o.succeeded(t)
	if o.stdout != newResult+"\n" {
		t.Errorf("result %q", o.stdout)
	}
	var result any
	if err := json.Unmarshal([]byte(newResult), &result); err != nil {
		t.Fatal(err)
	}
	want := []told{
		{"new1", "ADD", "K8S_POD_NAME=p;X=y=z", map[string]any{
			"cniVersion": "1.0.0", "name": "new", "type": "new1", "capabilities": map[string]any{"ips": true},
			"runtimeConfig": map[string]any{"ips": []any{"10.2.0.9"}},
		}},
		{"new2", "ADD", "K8S_POD_NAME=p;X=y=z", map[string]any{
			"cniVersion": "1.0.0", "name": "new", "type": "new2", "capabilities": map[string]any{"portMappings": true},
			"runtimeConfig": map[string]any{"portMappings": []any{json.Number("1")}}, "prevResult": result,
		}},
	}
	if have := c.told(); !reflect.DeepEqual(have, want) {
		t.Errorf("have %v\nwant %v", have, want)
	}
}

func TestAClosedGateLetsProbesThroughOnly(t *testing.T) {
	c := newCrossing(t)
	c.admit = "probes"
	for args, admitted := range map[string]bool{
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=braid-migrate;K8S_POD_NAME=p": true,
		"K8S_POD_NAMESPACE=default;K8S_POD_NAME=p":                       false,
		"K8S_POD_NAMESPACE=default;K8S_POD_NAMESPACE=braid-migrate":      false,
		"XK8S_POD_NAMESPACE=braid-migrate":                               false,
		"K8S_POD_NAMESPACE":                                              false,
		"":                                                               false,
	} {
		stdin := "{" + c.conf() + "}"
		o := call{verb: "ADD", env: []string{"CNI_PATH=" + c.bin, "CNI_ARGS=" + args}, stdin: &stdin}.run(t)
		if admitted {
			o.succeeded(t)
			if have := names(c.told()); have != "new1 new2" {
				t.Errorf("%q: %s", args, have)
			}
			continue
		}
		want := cniError{"1.0.0", 11, "please wait", "from network old to network new"}
		if have := o.failure(t); have != want || len(c.told()) > 0 {
			t.Errorf("%q: %+v", args, have)
		}
	}
}

func TestASandboxIsTakenDownByTheNetworkThatMadeIt(t *testing.T) {
	gateThen := `{"name":"new","cniVersion":"1.0.0","plugins":[{"type":"braid-cni","switch":{"from":` + oldNet + `,"to":` + newNet + `,"admit":"all"}}]}`
	for name, test := range map[string]struct {
		old, new string // remembered configurations
		prev     string
		want     string
	}{
		"the old one":                          {old: oldNet, want: "old2 old1"},
		"the new one, through the gate":        {new: gateThen, prev: newResult, want: "new2 new1"},
		"the new one, itself":                  {new: newNet, prev: newResult, want: "new2 new1"},
		"the new one, remembered elsewhere":    {prev: newResult, want: "new2 new1"},
		"the old one, with another version":    {old: strings.Replace(oldNet, `{"type":"old1","mtu":12345678901234567890},`, "", 1), want: "old2"},
		"one after the other":                  {old: oldNet, new: gateThen, prev: newResult, want: "old2 old1 new2 new1"},
		"nobody knows":                         {want: "old2 old1 new2 new1"},
		"a memory that is damaged":             {old: "{", want: "old2 old1"},
		"a memory of a configuration":          {old: `{"name":"old","cniVersion":"0.4.0","type":"old1"}`, want: "old1"},
		"a memory of a gate that is no gate":   {old: `{"name":"old","plugins":[{"type":"braid-cni","switch":{}}]}`, want: "old2 old1"},
		"a memory of somebody else's":          {old: strings.Replace(oldNet, `"old"`, `"else"`, 1), want: "old2 old1"},
		"the old one, through an earlier gate": {old: strings.NewReplacer(`"new"`, `"old"`, `"old"`, `"new"`).Replace(gateThen), want: "new2 new1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrossing(t)
			var memory string
			if test.old != "" {
				memory = c.remember("old", test.old, oldResult)
			}
			if test.new != "" {
				c.remember("new", test.new, newResult)
			}
			more := ""
			if test.prev != "" {
				more = `,"prevResult":` + test.prev
			}
			for _, admit := range []string{"all", "probes"} { // pods end also behind a closed gate
				c.admit = admit
				if memory != "" && admit == "probes" {
					c.remember("old", test.old, oldResult)
				}
				o := c.ask("DEL", more)
				o.succeeded(t)
				if have := names(c.told()); have != test.want || o.stdout != "" {
					t.Errorf("called %s, want %s; printed %q", have, test.want, o.stdout)
				}
				if _, err := os.Stat(memory); memory != "" && !os.IsNotExist(err) {
					t.Errorf("libcni's memory of the old network: %v", err)
				}
			}
			if test.new != "" {
				if _, err := os.Stat(filepath.Join(c.cache, "results", "new-abc-1-eth0")); err != nil {
					t.Error("libcni removes this itself, when the plugins have succeeded:", err)
				}
			}
		})
	}
}

func TestTheOldNetworkGetsBackWhatItGave(t *testing.T) {
	c := newCrossing(t)
	c.remember("old", oldNet, oldResult)
	c.ask("DEL", `,"runtimeConfig":{"portMappings":["now"],"ips":["now"]}`).succeeded(t)
	calls := c.told()
	if names(calls) != "old2 old1" {
		t.Fatal(calls)
	}
	var result any
	if err := json.Unmarshal([]byte(oldResult), &result); err != nil {
		t.Fatal(err)
	}
	want := told{"old2", "DEL", "K8S_POD_NAME=then;IgnoreUnknown=1", map[string]any{
		"cniVersion": "0.4.0", "name": "old", "type": "old2", "capabilities": map[string]any{"portMappings": true, "ips": false},
		"runtimeConfig": map[string]any{"portMappings": []any{"then"}}, "prevResult": result,
	}}
	if !reflect.DeepEqual(calls[0], want) {
		t.Errorf("have %v\nwant %v", calls[0], want)
	}
	if mtu := calls[1].conf["mtu"]; mtu != json.Number("12345678901234567890") {
		t.Errorf("a number has changed: %v", mtu)
	}
}

func TestAResultHasTheVersionOfTheConfiguration(t *testing.T) {
	for _, test := range []struct{ version, remembered, want string }{
		{"0.3.1", `{"cniVersion":"0.3.1","ips":[]}`, ``}, // DEL has had no result before 0.4.0
		{"0.4.0", oldResult, oldResult},
		{"1.0.0", oldResult, `{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}]}`},
		{"0.4.0", `{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}],"routes":[{"dst":"::/0"}]}`,
			`{"cniVersion":"0.4.0","ips":[{"address":"10.1.0.2/24","version":"4"},{"address":"fd00::2/64","version":"6"}],"routes":[{"dst":"::/0"}]}`},
		{"0.4.0", `null`, ``},
		{"0.4.0", `{}`, `{"cniVersion":"0.4.0"}`},
	} {
		c := newCrossing(t)
		c.from = strings.Replace(oldNet, "0.4.0", test.version, 1)
		c.remember("old", c.from, test.remembered)
		c.ask("DEL", "").succeeded(t)
		for _, call := range c.told() {
			var want any
			if test.want != "" {
				if err := json.Unmarshal([]byte(test.want), &want); err != nil {
					t.Fatal(err)
				}
			}
			if have := call.conf["prevResult"]; !reflect.DeepEqual(have, want) || call.conf["cniVersion"] != test.version {
				t.Errorf("%s of %s: %v, want %v; cniVersion %v", test.remembered, test.version, have, want, call.conf["cniVersion"])
			}
		}
	}
}

// A runtime's libcni chooses among cniVersions; what it chose is in the result.
func TestTheVersionIsThatOfTheADD(t *testing.T) {
	c := newCrossing(t)
	c.from = strings.Replace(oldNet, `"cniVersion":"0.4.0"`, `"cniVersion":"0.3.1","cniVersions":["0.4.0","1.0.0","9.0.0"]`, 1)
	for result, want := range map[string]string{oldResult: "0.4.0", `{"ips":[]}`: "1.0.0", `{"cniVersion":"1.1.0"}`: "1.0.0"} {
		c.remember("old", c.from, result)
		c.ask("DEL", "").succeeded(t)
		if have := c.told()[0].conf["cniVersion"]; have != want {
			t.Errorf("%s: %v, want %s", result, have, want)
		}
	}
}

func TestWhatLibcniRememberedBeforeItHadKindsIsAResult(t *testing.T) {
	c := newCrossing(t)
	write(t, filepath.Join(c.cache, "results", "old-abc-1-eth0"), oldResult, 0o600)
	c.ask("DEL", "").succeeded(t)
	calls := c.told()
	if names(calls) != "old2 old1" || calls[0].conf["prevResult"] == nil || calls[0].args != "K8S_POD_NAME=p;X=y=z" {
		t.Error(calls)
	}
}

func TestTwoNetworksOfOneNameAreToldApart(t *testing.T) {
	for name, test := range map[string]struct{ conf, want string }{
		"the old one":              {strings.Replace(oldNet, `"old"`, `"new"`, 1), "old2 old1"},
		"the new one":              {newNet, "new2 new1"},
		"the new one, by the gate": {`{"name":"new","plugins":[{"type":"braid-cni","switch":{"from":` + oldNet + `,"to":` + newNet + `,"admit":"all"}}]}`, "new2 new1"},
		"":                         {"", "old2 old1 new2 new1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrossing(t)
			c.from = strings.Replace(oldNet, `"old"`, `"new"`, 1)
			if test.conf != "" {
				c.remember("new", test.conf, oldResult)
			}
			c.ask("DEL", `,"prevResult":`+newResult).succeeded(t)
			if have := names(c.told()); have != test.want {
				t.Errorf("called %s, want %s", have, test.want)
			}
		})
	}
}

func TestADELThatFailsIsRepeatedInFull(t *testing.T) {
	c := newCrossing(t)
	memory := c.remember("old", oldNet, oldResult)
	c.plugin("old1", `echo '{"cniVersion":"0.4.0","code":101,"msg":"not now","details":"busy"}'; exit 1`)
	want := cniError{"1.0.0", 101, "not now", "busy; plugin old1 of network old"}
	for range 2 {
		if have := c.ask("DEL", "").failure(t); have != want || names(c.told()) != "old2 old1" {
			t.Errorf("%+v", have)
		}
		if _, err := os.Stat(memory); err != nil {
			t.Error("it is forgotten before it is done:", err)
		}
	}
	c.plugin("old1", "exit 0")
	c.ask("DEL", "").succeeded(t)
	if _, err := os.Stat(memory); !os.IsNotExist(err) {
		t.Error("it is not forgotten:", err)
	}
	// Killed after that, before the runtime knew: nobody knows who made it.
	c.told()
	c.ask("DEL", "").succeeded(t)
	if have := names(c.told()); have != "old2 old1 new2 new1" {
		t.Error(have)
	}
}

func TestOneOfTwoThatMayHaveMadeItFailsAndTheOtherIsAskedToo(t *testing.T) {
	c := newCrossing(t)
	c.plugin("old2", `echo '{"code":5,"msg":"broken"}'; exit 1`)
	if have := c.ask("DEL", "").failure(t); have.Code != 5 || have.Msg != "broken" || names(c.told()) != "old2 new2 new1" {
		t.Errorf("%+v", have)
	}
}

func TestAPluginThatIsGoneMattersOnlyWhereItMadeSomething(t *testing.T) {
	c := newCrossing(t)
	if err := os.Remove(filepath.Join(c.bin, "old1")); err != nil {
		t.Fatal(err)
	}
	c.ask("DEL", "").succeeded(t)
	if have := names(c.told()); have != "old2 new2 new1" {
		t.Error(have)
	}
	c.remember("old", oldNet, oldResult)
	if have := c.ask("DEL", "").failure(t); !strings.Contains(have.Msg, "plugin old1 of network old") || !strings.Contains(have.Details, c.bin) {
		t.Errorf("%+v", have)
	}
}

func TestAnADDThatFailsStopsThere(t *testing.T) {
	for body, want := range map[string]cniError{
		`echo '{"cniVersion":"1.0.0","code":104,"msg":"no addresses","details":"left"}'; exit 1`: {"1.0.0", 104, "no addresses", "left; plugin new1 of network new"},
		`echo '{"code":11,"msg":"later"}'; exit 1`:                                               {"1.0.0", 11, "later", "plugin new1 of network new"},
		`echo oops; echo on error >&2; exit 3`:                                                   {"1.0.0", 999, "plugin new1 of network new ended with exit code 3", "oops\n\non error"},
		`echo nonsense`:                                                                          {"1.0.0", 6, "plugin new1 of network new printed no result", "invalid character 'o' in literal null (expecting 'u'): nonsense\n"},
		`echo null`:                                                                              {"1.0.0", 6, "plugin new1 of network new printed no result", "<nil>: null\n"},
		`true`:                                                                                   {"1.0.0", 6, "plugin new1 of network new printed no result", "unexpected end of JSON input: "},
	} {
		c := newCrossing(t)
		c.plugin("new1", body)
		if have := c.ask("ADD", "").failure(t); have != want || names(c.told()) != "new1" {
			t.Errorf("%s: %+v", body, have)
		}
	}
}

// What libcni remembers is written after the last plugin has succeeded.
func TestAnADDThatDidNotSucceedIsTakenDownByTheNetworkThatItWasFor(t *testing.T) {
	c := newCrossing(t)
	c.plugin("new2", "exit 1")
	if have := c.ask("ADD", "").failure(t); have.Code != 999 {
		t.Errorf("%+v", have)
	}
	c.told()
	c.plugin("new2", "exit 2")
	c.ask("DEL", "").failure(t)
	if have := names(c.told()); have != "new2" {
		t.Errorf("called %s", have)
	}
	c.plugin("new2", "exit 0")
	c.ask("DEL", "").succeeded(t)
	if have := names(c.told()); have != "new2 new1" {
		t.Errorf("called %s", have)
	}
	if left, err := filepath.Glob(c.cache + "/*"); err != nil || len(left) != 1 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestAPluginThatHangsIsKilledInTime(t *testing.T) {
	c := newCrossing(t)
	c.plugin("new1", "exec sleep 1000")
	if have := c.ask("ADD", `,"timeout":1`).failure(t); have.Code != 11 || have.Msg != "plugin new1 of network new did not finish in time" {
		t.Errorf("%+v", have)
	}
}

func TestAResultWithoutAVersionGetsOne(t *testing.T) {
	c := newCrossing(t)
	c.plugin("new2", `echo '{"ips":[]}'`)
	if o := c.ask("ADD", ""); o.stdout != `{"cniVersion":"1.0.0","ips":[]}` {
		t.Errorf("%+v", o)
	}
}

func TestThePluginsNoiseIsForTheRuntimesLog(t *testing.T) {
	c := newCrossing(t)
	c.plugin("new1", `echo "noise of one" >&2; echo '`+newResult+`'`)
	if o := c.ask("ADD", ""); o.code != 0 || o.stderr != "noise of one\n" {
		t.Errorf("%+v", o)
	}
}

func TestCHECKAndSTATUSAndGCSucceedAndDoNothing(t *testing.T) {
	c := newCrossing(t)
	c.to = strings.Replace(newNet, "1.0.0", "1.1.0", 1)
	for _, verb := range []string{"CHECK", "STATUS", "GC"} {
		o := c.ask(verb, `,"prevResult":`+newResult+`,"cni.dev/valid-attachments":[]`)
		o.succeeded(t)
		if o.stdout != "" || len(c.told()) > 0 {
			t.Errorf("%s: %+v", verb, o)
		}
	}
}

func TestAGateNeedsTheRuntimesPluginDirectory(t *testing.T) {
	c := newCrossing(t)
	for _, verb := range []string{"ADD", "DEL"} {
		stdin := "{" + c.conf() + "}"
		if have := (call{verb: verb, unset: "CNI_PATH", stdin: &stdin}).run(t).failure(t); have.Code != 4 || !strings.Contains(have.Msg, "CNI_PATH") {
			t.Errorf("%+v", have)
		}
	}
}

func TestASenselessSwitchIsRefused(t *testing.T) {
	good := newCrossing(t)
	for name, change := range map[string]func(*crossing){
		"admit":         func(c *crossing) { c.admit = "some" },
		"cache":         func(c *crossing) { c.cache = "relative" },
		"no plugins":    func(c *crossing) { c.from = `{"name":"old","plugins":[]}` },
		"no type":       func(c *crossing) { c.from = `{"name":"old","plugins":[{}]}` },
		"no name":       func(c *crossing) { c.from = `{"plugins":[{"type":"x"}]}` },
		"a path":        func(c *crossing) { c.from = `{"name":"../x","plugins":[{"type":"x"}]}` },
		"itself":        func(c *crossing) { c.from = `{"name":"old","plugins":[{"type":"braid-cni","switch":{}}]}` },
		"a list":        func(c *crossing) { c.from = `[]` },
		"a string":      func(c *crossing) { c.from = `"old"` },
		"odd plugin":    func(c *crossing) { c.from = `{"name":"old","plugins":["x"]}` },
		"odd capabilty": func(c *crossing) { c.from = `{"name":"old","plugins":[{"type":"x","capabilities":1}]}` },
	} {
		c := good
		change(&c)
		for _, verb := range []string{"ADD", "DEL"} {
			if have := c.ask(verb, "").failure(t); have.Code != 7 || !strings.Contains(have.Msg, "switch") {
				t.Errorf("%s: %+v", name, have)
			}
		}
	}
}

// Where Braid is the node's CNI, the gate leads to it.
func TestAGateLeadsToBraid(t *testing.T) {
	c := newCrossing(t)
	asked := make(chan wire.Request, 1)
	socket := daemon(t, func(conn *wire.Conn) {
		asked <- conn.Request()
		_ = conn.Reply(wire.Reply{Stdout: []byte(`{"cniVersion":"1.1.0","ips":[]}`)})
	})
	c.to = fmt.Sprintf(`{"cniVersion":"1.1.0","name":"braid","plugins":[{"type":"braid-cni","socket":%q,"capabilities":{"ips":true}}]}`, socket)
	if err := os.Symlink(binary(t), filepath.Join(c.bin, "braid-cni")); err != nil {
		t.Fatal(err)
	}
	o := c.ask("ADD", `,"runtimeConfig":{"ips":["10.2.0.9"],"portMappings":[1]}`)
	o.succeeded(t)
	r := receive(t, "ADD", asked)
	var conf map[string]any
	if err := json.Unmarshal(r.Stdin, &conf); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.1.0", "name": "braid", "type": "braid-cni", "socket": socket, "capabilities": map[string]any{"ips": true},
		"runtimeConfig": map[string]any{"ips": []any{"10.2.0.9"}},
	}
	if r.Command != "ADD" || r.ContainerID != "abc-1" || r.Args != "K8S_POD_NAME=p;X=y=z" || !reflect.DeepEqual(conf, want) {
		t.Errorf("%+v, %v", r, conf)
	}
	c.remember("braid", c.to, newResult)
	c.ask("DEL", `,"prevResult":{"cniVersion":"1.1.0","ips":[]}`).succeeded(t)
	if r := receive(t, "DEL", asked); r.Command != "DEL" || len(c.told()) > 0 {
		t.Errorf("%+v", r)
	}
	// A pod that was there before Braid came.
	if err := os.Remove(filepath.Join(c.cache, "results", "braid-abc-1-eth0")); err != nil {
		t.Fatal(err)
	}
	c.remember("old", oldNet, oldResult)
	c.ask("DEL", "").succeeded(t)
	if have := names(c.told()); have != "old2 old1" || len(asked) > 0 {
		t.Errorf("called %s", have)
	}
}

func TestWithoutASwitchBraidIsAsked(t *testing.T) {
	socket := daemon(t, func(c *wire.Conn) { _ = c.Reply(wire.Reply{Stdout: []byte("{}")}) })
	if o := (call{verb: "ADD", socket: socket, conf: `,"switch":null`}).run(t); o.code != 0 || o.stdout != "{}" {
		t.Errorf("%+v", o)
	}
}

func FuzzGate(f *testing.F) {
	f.Add([]byte(`{"from":`+oldNet+`,"to":`+newNet+`,"admit":"all"}`), []byte(`{"kind":"cniCacheV1","config":"e30=","result":{}}`))
	f.Add([]byte(`{"from":{"name":"a","plugins":[{"type":"x","switch":null}]},"to":`+newNet+`,"admit":"probes","cacheDir":""}`), []byte(oldResult))
	f.Add([]byte(`null`), []byte(`null`))
	f.Fuzz(func(t *testing.T, conf, memory []byte) {
		g, failure := parseGate(conf)
		if failure != nil {
			if failure.Code == 0 || failure.Msg == "" {
				t.Errorf("%+v", failure)
			}
			return
		}
		for _, l := range []list{g.From, g.To} {
			m := parseMemory(memory, l, attachment{})
			if err := m.list.check(); err != nil || m.list.Name != l.Name {
				t.Fatalf("%q leads to %q: %v", memory, m.list.Name, err)
			}
			result, err := asVersion(m.result, m.version)
			if err != nil {
				continue
			}
			for _, p := range m.list.Plugins {
				text, err := p.complete(l.Name, m.attachment, result)
				if err != nil || !json.Valid(text) {
					t.Errorf("%s: %v", text, err)
				}
			}
		}
	})
}
