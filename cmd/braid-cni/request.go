package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"braid.dev/braid/internal/wire"
)

const (
	newestVersion = "1.1.0"
	// maxStdin is far above any configuration and, encoded, below
	// wire.MaxFrame. With GC, the configuration names every container.
	maxStdin = 8 << 20
	// maxSocket is what the kernel takes as the path of a socket.
	maxSocket = 107
)

func supportedVersions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", newestVersion} }

// request is a valid request of the runtime.
type request struct {
	wire.Request
	conf conf
	// sharesNetNS is CNI_NETNS_OVERRIDE: the container may be in the runtime's
	// own namespace.
	sharesNetNS bool
}

// conf holds the keys of the configuration that the shim itself looks at.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Socket is where braidd listens.
	Socket string `json:"socket"`
	// Timeout is how many seconds the request may take in all.
	Timeout int `json:"timeout"`
	// Notes is the directory for DELs that nobody serves.
	Notes string `json:"notes"`
	// Switch makes the shim a gate between two networks.
	Switch json.RawMessage `json:"switch"`
}

// outputVersion is the version to answer in.
func (c conf) outputVersion() string {
	if slices.Contains(supportedVersions(), c.CNIVersion) {
		return c.CNIVersion
	}
	return newestVersion
}

// verbs says for each verb which variables it cannot do without and the
// cniVersion that introduced it (CNI specification 1.1, section 2). CNI_PATH is
// not among them: only a plugin that runs others needs it, and the daemon knows
// where the node's plugins are.
//
// REACH is not of CNI: the daemon has it run to get at a container that the
// runtime asks nothing for. It does nothing but to bring the namespace, and the
// daemon takes it from nobody else.
func verbs() map[string]verb {
	return map[string]verb{
		"ADD":    {needs: []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, netns: true},
		"CHECK":  {needs: []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, netns: true, since: "0.4.0"},
		"DEL":    {needs: []string{"CNI_CONTAINERID", "CNI_IFNAME"}, netns: true},
		"REACH":  {needs: []string{"CNI_CONTAINERID", "CNI_IFNAME"}, netns: true},
		"GC":     {since: "1.1.0"},
		"STATUS": {since: "1.1.0"},
	}
}

type verb struct {
	needs []string
	// netns says that the container's namespace goes with it.
	netns bool
	since string
}

// readRequest takes the request out of the environment and the configuration
// and checks both. Its conf is as good as it was understood, also on error.
func readRequest(getenv func(string) string, stdin io.Reader) (request, *wire.Error) {
	r := request{Request: wire.Request{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		NetNS:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
	}}
	override := getenv("CNI_NETNS_OVERRIDE")
	r.sharesNetNS = override == "1" || strings.EqualFold(override, "true")

	v, ok := verbs()[r.Command]
	if !ok && r.Command != "" {
		return r, &wire.Error{Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("unknown CNI_COMMAND %q", r.Command)}
	}
	if failure := checkEnvironment(v, r.Request, getenv); failure != nil {
		return r, failure
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxStdin+1))
	if err != nil {
		return r, &wire.Error{Code: wire.CodeIO, Msg: "read the network configuration from standard input", Details: err.Error()}
	}
	r.Stdin = data
	var failure *wire.Error
	r.conf, failure = parseConf(data)
	if failure != nil {
		return r, failure
	}
	return r, checkVersion(v, r.Command, r.conf.CNIVersion)
}

func checkEnvironment(v verb, r wire.Request, getenv func(string) string) *wire.Error {
	var missing []string
	for _, name := range append([]string{"CNI_COMMAND"}, v.needs...) {
		if getenv(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return &wire.Error{
			Code: wire.CodeInvalidEnvironment,
			Msg:  "required environment variables are missing: " + strings.Join(missing, ", "),
		}
	}
	if slices.Contains(v.needs, "CNI_CONTAINERID") && !isName(r.ContainerID) {
		return &wire.Error{
			Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_CONTAINERID %q is not valid", r.ContainerID),
			Details: "it must begin with a letter or a digit and go on with these, '_', '.' or '-'",
		}
	}
	if slices.Contains(v.needs, "CNI_IFNAME") && !isIfName(r.IfName) {
		return &wire.Error{
			Code: wire.CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_IFNAME %q is not valid", r.IfName),
			Details: "it must have 1 to 15 bytes without '/', ':' or white space, and not be '.' or '..'",
		}
	}
	return nil
}

// isName tells whether s is a container ID or a network name as CNI wants them.
func isName(s string) bool {
	for i, r := range s {
		alphanumeric := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alphanumeric && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return s != ""
}

// isIfName tells whether the kernel takes s as the name of an interface.
func isIfName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || r == 0 || unicode.IsSpace(r) })
}

func parseConf(data []byte) (conf, *wire.Error) {
	if len(data) > maxStdin {
		return conf{}, &wire.Error{Code: wire.CodeInvalidConfig, Msg: fmt.Sprintf("the network configuration is larger than %d bytes", maxStdin)}
	}
	var c conf
	if err := json.Unmarshal(data, &c); err != nil {
		code := uint(wire.CodeDecode)
		// The JSON is sound, one of its keys holds the wrong kind of value.
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			code = wire.CodeInvalidConfig
		}
		return c, &wire.Error{Code: code, Msg: "decode the network configuration", Details: err.Error()}
	}
	invalid := func(format string, args ...any) (conf, *wire.Error) {
		return c, &wire.Error{Code: wire.CodeInvalidConfig, Msg: fmt.Sprintf(format, args...)}
	}
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if c.Notes == "" {
		c.Notes = wire.DefaultNotes
	}
	switch {
	case c.Name == "":
		return invalid("the network configuration has no name")
	case !isName(c.Name):
		return invalid("network name %q: it must begin with a letter or a digit and go on with these, '_', '.' or '-'", c.Name)
	case !filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocket:
		return invalid("socket %q: it must be an absolute path of at most %d bytes", c.Socket, maxSocket)
	case !filepath.IsAbs(c.Notes):
		return invalid("notes %q: it must be an absolute path", c.Notes)
	case c.Timeout < 0 || c.Timeout > int(maxTimeout/time.Second):
		return invalid("timeout %d: it must be between 1 and %d seconds", c.Timeout, maxTimeout/time.Second)
	}
	return c, nil
}

// checkVersion compares versions as text: among the four that are supported,
// that is their order.
func checkVersion(v verb, command, version string) *wire.Error {
	if !slices.Contains(supportedVersions(), version) {
		if version == "" {
			version = "0.1.0" // what a configuration without the key means
		}
		return &wire.Error{
			Code: wire.CodeIncompatibleVersion, Msg: "incompatible CNI versions",
			Details: fmt.Sprintf("the configuration is %q, braid-cni supports %q", version, supportedVersions()),
		}
	}
	if version < v.since {
		return &wire.Error{
			Code: wire.CodeIncompatibleVersion, Msg: fmt.Sprintf("cniVersion %s has no %s", version, command),
			Details: "it came with " + v.since,
		}
	}
	return nil
}
