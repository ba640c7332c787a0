package attach

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"braid.dev/braid/internal/plan"
)

// complete is the configuration that a plugin of the chain reads: what its
// author wrote, with the keys that CNI injects (specification 1.1, section 3,
// "Deriving execution configuration from plugin configuration"). Values are
// carried over byte for byte, so that keys that nobody here knows and numbers
// of any precision arrive as they were written.
func complete(a plan.Attachment, p plan.Plugin, prev *current.Result) ([]byte, error) {
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(p.Conf, &conf); err != nil {
		return nil, fmt.Errorf("read its configuration: %w", err)
	}
	if conf == nil {
		return nil, fmt.Errorf("read its configuration: it is %s, not an object", p.Conf)
	}
	set := func(key string, value any) error {
		raw, err := encode(value)
		if err != nil {
			return fmt.Errorf("complete its configuration: %s: %w", key, err)
		}
		conf[key] = raw
		return nil
	}
	if err := set("name", a.Config.Name); err != nil {
		return nil, err
	}
	if a.Config.CNIVersion != "" {
		if err := set("cniVersion", a.Config.CNIVersion); err != nil {
			return nil, err
		}
	}
	if rc := runtimeConfig(a, p); len(rc) > 0 {
		if err := set("runtimeConfig", rc); err != nil {
			return nil, err
		}
	}
	if prev != nil {
		asConfigured, err := prev.GetAsVersion(a.Config.CNIVersion)
		if err != nil {
			return nil, fmt.Errorf("complete its configuration: prevResult: %w", err)
		}
		if err := set("prevResult", asConfigured); err != nil {
			return nil, err
		}
	}
	return encode(conf)
}

// encode leaves <, > and & as they are: plugins may compare text.
func encode(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// runtimeConfig picks the capability arguments that the plugin declares.
func runtimeConfig(a plan.Attachment, p plan.Plugin) map[string]json.RawMessage {
	picked := map[string]json.RawMessage{}
	for key, declared := range p.Capabilities {
		if value, ok := a.RuntimeConfig[key]; ok && declared {
			picked[key] = value
		}
	}
	return picked
}

// prevForLater is the result to hand to DEL and CHECK as prevResult, which CNI
// has from version 0.4.0 on.
func prevForLater(a plan.Attachment, r *current.Result) *current.Result {
	if r == nil || !atLeast(a.Config.CNIVersion, "0.4.0") {
		return nil
	}
	return r
}

// atLeast reports whether v is a version not older than least. No version is
// the oldest, as in the reference library.
func atLeast(v, least string) bool {
	if v == "" {
		return false
	}
	ok, err := version.GreaterThanOrEqualTo(v, least)
	return err == nil && ok
}

// args are the CNI_ARGS of one attachment: the runtime's, and the attachment's
// own after them. Plugins of the reference kind fail on a key they do not know
// unless they are told not to, and the runtime knew nothing of our keys.
func args(runtime, own string) string {
	runtime = trimSeparators(runtime)
	if own == "" {
		return runtime
	}
	if runtime == "" {
		return "IgnoreUnknown=1;" + own
	}
	if !bytes.Contains([]byte(";"+runtime), []byte(";IgnoreUnknown=")) {
		runtime = "IgnoreUnknown=1;" + runtime
	}
	return runtime + ";" + own
}

func trimSeparators(s string) string { return string(bytes.Trim([]byte(s), "; ")) }

// decodeResult reads a stored result.
func decodeResult(raw json.RawMessage) (*current.Result, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	r := new(current.Result)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("read the stored result: %w", err)
	}
	return r, nil
}

func refuse(code uint, format string, a ...any) error {
	return types.NewError(code, fmt.Sprintf(format, a...), "")
}
