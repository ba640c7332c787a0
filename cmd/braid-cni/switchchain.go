package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"braid.dev/braid/internal/wire"
)

// caller runs the plugins of a list as libcni does for a runtime.
type caller struct {
	getenv  func(string) string
	environ []string
	stderr  io.Writer
	request request
}

// addList runs ADD through a list. The result is that of the last plugin.
func (c caller) addList(ctx context.Context, l list, a attachment) (json.RawMessage, *wire.Error) {
	var result json.RawMessage
	for _, p := range l.Plugins {
		conf, err := p.complete(l.Name, a, result)
		if err != nil {
			return nil, undecodable(l, p, err)
		}
		out, failure := c.call(ctx, l, p, a.args, conf)
		if failure == nil {
			result, failure = withVersion(out, a.version, l, p)
		}
		if failure != nil {
			return nil, failure
		}
	}
	return result, nil
}

// delList runs DEL through a list, last plugin first, and stops at the first
// that fails: the runtime will ask again.
func (c caller) delList(ctx context.Context, m maker) *wire.Error {
	var result json.RawMessage
	if m.version >= "0.4.0" { // the first with a result for DEL
		var err error
		if result, err = asVersion(m.result, m.version); err != nil {
			return &wire.Error{Code: wire.CodeDecode, Msg: "the result that is remembered of network " + m.list.Name, Details: err.Error()}
		}
	}
	for _, p := range slices.Backward(m.list.Plugins) {
		conf, err := p.complete(m.list.Name, m.attachment, result)
		if err != nil {
			return undecodable(m.list, p, err)
		}
		if _, failure := c.call(ctx, m.list, p, m.args, conf); failure != nil {
			if m.unsure && c.absent(p) {
				continue // it cannot have made anything that it could take down
			}
			return failure
		}
	}
	return nil
}

func undecodable(l list, p plugin, err error) *wire.Error {
	return &wire.Error{Code: wire.CodeInternal, Msg: fmt.Sprintf("configuration of plugin %s of network %s", p.kind, l.Name), Details: err.Error()}
}

// complete is the plugin's configuration with what a runtime adds to it (CNI
// specification 1.1, section 3, "Deriving request configuration").
func (p plugin) complete(name string, a attachment, prev json.RawMessage) ([]byte, error) {
	conf := make(map[string]json.RawMessage, len(p.conf)+4)
	for key, value := range p.conf {
		conf[key] = value
	}
	var err error
	if conf["name"], err = json.Marshal(name); err != nil {
		return nil, err
	}
	if conf["cniVersion"], err = json.Marshal(a.version); err != nil {
		return nil, err
	}
	if prev != nil {
		conf["prevResult"] = prev
	}
	caps := map[string]json.RawMessage{}
	for capability, declared := range p.capabilities {
		if value, given := a.caps[capability]; declared && given {
			caps[capability] = value
		}
	}
	if len(caps) > 0 {
		if conf["runtimeConfig"], err = json.Marshal(caps); err != nil {
			return nil, err
		}
	}
	return json.Marshal(conf)
}

// withVersion checks that a plugin printed an object, and has it say which
// version it is of, as libcni does for plugins that leave that out.
func withVersion(out []byte, version string, l list, p plugin) (json.RawMessage, *wire.Error) {
	var result map[string]json.RawMessage
	if err := json.Unmarshal(out, &result); err != nil || result == nil {
		return nil, &wire.Error{
			Code: wire.CodeDecode, Msg: fmt.Sprintf("plugin %s of network %s printed no result", p.kind, l.Name),
			Details: fmt.Sprintf("%v: %s", err, cut(out)),
		}
	}
	if versionOf(out) != "" {
		return out, nil
	}
	text, err := json.Marshal(version)
	if err == nil {
		result["cniVersion"] = text
		out, err = json.Marshal(result)
	}
	if err != nil {
		return nil, undecodable(l, p, err)
	}
	return out, nil
}

// asVersion converts a result between the versions of the specification: plugins
// read it as one of the version of their configuration. Since 1.0.0 an address
// does not say its family any more.
func asVersion(result json.RawMessage, version string) (json.RawMessage, error) {
	if result == nil || versionOf(result) == version {
		return result, nil
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(result, &all); err != nil {
		return nil, err
	}
	var ips []map[string]json.RawMessage
	if isSet(all["ips"]) {
		if err := json.Unmarshal(all["ips"], &ips); err != nil {
			return nil, err
		}
	}
	for _, ip := range ips {
		if delete(ip, "version"); version < "1.0.0" {
			family := `"4"`
			if bytes.ContainsRune(ip["address"], ':') {
				family = `"6"`
			}
			ip["version"] = json.RawMessage(family)
		}
	}
	var err error
	if ips != nil {
		if all["ips"], err = json.Marshal(ips); err != nil {
			return nil, err
		}
	}
	if all["cniVersion"], err = json.Marshal(version); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// call runs one plugin and returns what it printed.
func (c caller) call(ctx context.Context, l list, p plugin, args string, conf []byte) ([]byte, *wire.Error) {
	r := runProgram(ctx, wire.Exec{Name: p.kind, Dirs: c.dirs(), Env: c.env(args), Stdin: conf})
	_, _ = c.stderr.Write(r.Stderr) // what a plugin says is for the runtime's log
	where := fmt.Sprintf("plugin %s of network %s", p.kind, l.Name)
	switch {
	case r.Failure == wire.Canceled && context.Cause(ctx) == errTimeout:
		return nil, &wire.Error{Code: wire.CodeTryAgainLater, Msg: where + " did not finish in time"}
	case r.Failure != "":
		return nil, &wire.Error{Code: wire.CodeInternal, Msg: where + ": " + string(r.Failure), Details: r.Detail}
	case r.ExitCode != 0:
		return nil, pluginFailure(where, r)
	}
	return r.Stdout, nil
}

// pluginFailure is the error that the plugin printed.
func pluginFailure(where string, r wire.ExecResult) *wire.Error {
	var e wire.Error
	if err := json.Unmarshal(r.Stdout, &e); err != nil || e.Msg == "" && e.Code == 0 {
		text := strings.TrimSpace(cut(r.Stdout) + "\n" + cut(r.Stderr))
		return &wire.Error{Code: wire.CodeInternal, Msg: fmt.Sprintf("%s ended with exit code %d", where, r.ExitCode), Details: text}
	}
	e.Details = strings.TrimPrefix(e.Details+"; "+where, "; ")
	return &e
}

// cut is the beginning of what a plugin printed, for a person.
func cut(text []byte) string {
	const enough = 1000
	return string(text[:min(len(text), enough)])
}

// dirs are where the runtime has its plugins.
func (c caller) dirs() []string {
	return slices.DeleteFunc(filepath.SplitList(c.getenv("CNI_PATH")), func(dir string) bool { return dir == "" })
}

func (c caller) absent(p plugin) bool {
	_, err := find(wire.Exec{Name: p.kind, Dirs: c.dirs()})
	return err != nil
}

// env is the environment of this program, with the arguments of the ADD.
func (c caller) env(args string) []string {
	env := slices.DeleteFunc(slices.Clone(c.environ), func(kv string) bool { return strings.HasPrefix(kv, "CNI_ARGS=") })
	return append(env, "CNI_ARGS="+args)
}
