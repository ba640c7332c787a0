package daemon

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// request is one parsed request of the runtime.
type request struct {
	wire.Request
	conf  conf
	pod   podArgs
	reach attach.Reach
}

// key names the sandbox.
func (r request) key() string { return sandboxKey(r.ContainerID, r.IfName) }

// sandboxKey names a sandbox where one is looked up.
func sandboxKey(containerID, ifName string) string { return containerID + "/" + ifName }

// sandbox is what of the request is remembered with its records.
func (d *Daemon) sandbox(r request) (store.Sandbox, error) {
	sb := sandboxOf(r.Request)
	sb.Network, sb.Boot, sb.Added = r.conf.Name, d.BootID, time.Now()
	if r.reach.NS != nil {
		id, err := r.reach.NS.ID()
		if err != nil {
			return sb, err
		}
		sb.NSID = id
	}
	return sb, nil
}

// conf is the configuration that the runtime sent, as far as it is Braid's
// own. What the default network does is in the conf dir.
type conf struct {
	CNIVersion    string                     `json:"cniVersion"`
	Name          string                     `json:"name"`
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
	PrevResult    json.RawMessage            `json:"prevResult"`
	// Valid is nil when the runtime gave no list, which is not the same as an
	// empty one.
	Valid *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// podAnnotations are the pod's annotations as the runtime passes them, nil when
// it does not. containerd and CRI-O do with ADD and DEL, as the kubelet has them,
// for a plugin that declares the capability, which Braid's own does.
func (c conf) podAnnotations() map[string]string {
	var annotations map[string]string
	if err := json.Unmarshal(c.RuntimeConfig[plan.PodAnnotations], &annotations); err != nil {
		return nil
	}
	return annotations
}

// podArgs are the CNI_ARGS that a Kubernetes runtime gives.
type podArgs struct {
	namespace, name, uid string
}

// isPod reports whether the request is for a pod, and not for a container that
// Kubernetes does not know.
func (p podArgs) isPod() bool { return p.name != "" }

func parseRequest(r wire.Request) (request, error) {
	parsed := request{Request: r}
	if err := json.Unmarshal(r.Stdin, &parsed.conf); err != nil {
		return parsed, types.NewError(types.ErrDecodingFailure, "decode the network configuration", err.Error())
	}
	if parsed.conf.CNIVersion == "" {
		parsed.conf.CNIVersion = "0.1.0" // CNI specification 1.1, section 1
	}
	switch r.Command {
	case "ADD", "DEL", "CHECK":
	default:
		return parsed, nil
	}
	for name, value := range map[string]string{"CNI_CONTAINERID": r.ContainerID, "CNI_IFNAME": r.IfName} {
		if value == "" || strings.ContainsAny(value, "\x00/") || len(value) > 1024 {
			return parsed, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s %q is not valid", name, value), "")
		}
	}
	var err error
	parsed.pod, err = parseArgs(r.Args)
	return parsed, err
}

// parseArgs reads CNI_ARGS: KEY=VALUE separated by semicolons. Values may hold
// any character but the semicolon; keys that are not ours belong to others.
func parseArgs(args string) (podArgs, error) {
	var p podArgs
	for _, pair := range strings.Split(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch strings.TrimSpace(key) {
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	if (p.namespace == "") != (p.name == "") {
		return p, types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_ARGS %q: K8S_POD_NAMESPACE and K8S_POD_NAME come together", args), "")
	}
	return p, nil
}

// openNS takes the namespace over from the connection.
func openNS(c *wire.Conn) (*netns.NS, error) {
	f := c.NetNS()
	if f == nil {
		return nil, nil
	}
	ns, err := netns.FromFile(f)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "CNI_NETNS "+c.Request().NetNS, err.Error())
	}
	return ns, nil
}
