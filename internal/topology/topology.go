// Package topology draws which pod is on which network, as text or as SVG.
//
// It draws what is true, not what was asked for: its source is the
// network-status annotation that Braid writes after it has built an interface.
package topology

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// statusAnnotation is defined by the NPWG specification 1.3, section 4.
const statusAnnotation = "k8s.v1.cni.cncf.io/network-status"

// View is a cluster as this package draws it.
type View struct {
	Nodes []Node
}

// Node is a machine with the pods that run on it.
type Node struct {
	Name string
	Pods []Pod
}

// Pod is a pod with the interfaces of its network-status.
type Pod struct {
	Namespace  string
	Name       string
	Interfaces []Interface
}

// Interface is one element of a pod's network-status.
type Interface struct {
	Network string   `json:"name"`
	Name    string   `json:"interface"`
	IPs     []string `json:"ips"`
	MAC     string   `json:"mac"`
	Default bool     `json:"default"`
}

// Parse reads a PodList in JSON, as "kubectl get pods -A -o json" prints it.
// Pods that are not on a node yet or have no network-status are left out. A
// status that cannot be read is an error that names the pod.
func Parse(podList []byte) (View, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Namespace, Name string
				Annotations     map[string]string
			}
			Spec struct{ NodeName string }
		}
	}
	if err := json.Unmarshal(podList, &list); err != nil {
		return View{}, fmt.Errorf("read list of pods: %w", err)
	}
	nodes := map[string][]Pod{}
	for _, item := range list.Items {
		status := item.Metadata.Annotations[statusAnnotation]
		if status == "" || item.Spec.NodeName == "" {
			continue
		}
		pod := Pod{Namespace: item.Metadata.Namespace, Name: item.Metadata.Name}
		if err := json.Unmarshal([]byte(status), &pod.Interfaces); err != nil {
			return View{}, fmt.Errorf("read network-status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		nodes[item.Spec.NodeName] = append(nodes[item.Spec.NodeName], pod)
	}
	return sorted(nodes), nil
}

func sorted(nodes map[string][]Pod) View {
	var v View
	for name, pods := range nodes {
		slices.SortFunc(pods, func(a, b Pod) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		v.Nodes = append(v.Nodes, Node{Name: name, Pods: pods})
	}
	slices.SortFunc(v.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return v
}

// Networks lists every network of the view once: default networks first, then
// by name.
func (v View) Networks() []string {
	isDefault := map[string]bool{}
	for _, n := range v.Nodes {
		for _, p := range n.Pods {
			for _, i := range p.Interfaces {
				isDefault[i.Network] = isDefault[i.Network] || i.Default
			}
		}
	}
	names := make([]string, 0, len(isDefault))
	for name := range isDefault {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if isDefault[a] != isDefault[b] {
			if isDefault[a] {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, b)
	})
	return names
}

// Text is the view as a table with one line per interface.
func (v View) Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tPOD\tINTERFACE\tNETWORK\tADDRESSES\tMAC")
	for _, n := range v.Nodes {
		for _, p := range n.Pods {
			for _, i := range p.Interfaces {
				fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%s\t%s\n",
					n.Name, p.Namespace, p.Name, i.Name, i.Network, dash(strings.Join(i.IPs, ",")), dash(i.MAC))
			}
		}
	}
	w.Flush()
	return b.String()
}

func dash(s string) string { return cmp.Or(s, "-") }
