package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"braid.dev/braid/internal/plan"
)

// worst are annotations and networks as large as they may be, or a little
// larger, of which each makes one part of the planning work as hard as it can.
var worst = map[string]struct {
	annotation, config string
	// refused is a part of the refusal, empty for what is planned.
	refused string
}{
	"short form": {annotation: fill("net,", maxAnnotation), config: `{"type": "a"}`, refused: "elements are too many"},
	"elements":   {annotation: list(`{"name": "net"}`, maxAnnotation), config: `{"type": "a"}`, refused: "elements are too many"},
	"keys of one element": {annotation: `[{"name": "net", ` + strings.TrimSuffix(numbered(`"k%d.x":1,`, maxAnnotation-100), ",") + "}]",
		config: `{"type": "a"}`},
	"arguments for each plugin of a chain": {
		annotation: list(`{"name": "net", "cni-args": {`+strings.TrimSuffix(numbered(`"k%d":1,`, 32000), ",")+"}}", maxAnnotation),
		config:     `{"plugins": [` + strings.TrimSuffix(strings.Repeat(`{"type": "a"},`, 32), ",") + "]}",
		refused:    "configurations of the pod's networks",
	},
	"port mappings": {annotation: `[{"name": "net", "portMappings": [` + strings.TrimSuffix(numbered(`{"hostPort":%d,"containerPort":1},`, 35_000), ",") + "]}]",
		config: `{"type": "a", "capabilities": {"portMappings": true}}`},
	"too many port mappings": {annotation: `[{"name": "net", "portMappings": [` + strings.TrimSuffix(fill(`{"hostPort":1,"containerPort":1},`, maxAnnotation-100), ",") + "]}]",
		config: `{"type": "a"}`, refused: "elements are too many"},
	"addresses":   {annotation: `[{"name": "net", "ips": [` + strings.TrimSuffix(fill(`"fd00::1",`, maxAnnotation-100), ",") + "]}]", config: `{"type": "a"}`, refused: "elements are too many"},
	"deep JSON":   {annotation: strings.Repeat(`[{"name":`, maxAnnotation/9), config: `{"type": "a"}`, refused: "levels deep"},
	"white space": {annotation: "[" + strings.Repeat(" ", maxAnnotation-3) + "]", config: `{"type": "a"}`},
	"one string":  {annotation: `["` + strings.Repeat(`\u0000`, maxAnnotation/6-2) + `"]`, config: `{"type": "a"}`, refused: "want an object"},
	"routes of a network": {annotation: list(`{"name": "net"}`, 4000),
		config:  `{"type": "bridge", "ipam": {"type": "static", "routes": [` + strings.TrimSuffix(routes(65_000), ",") + "]}}",
		refused: "configurations of the pod's networks"},
	"routes of many networks": {annotation: list(`{"name": "net"}`, 4000),
		config: `{"type": "bridge", "ipam": {"type": "static", "routes": [` + strings.TrimSuffix(routes(1900), ",") + "]}}"},
	"addresses of a network": {annotation: `[{"name": "net", "default-route": ["10.0.0.1"]}]`,
		config: `{"type": "bridge", "ipam": {"type": "static", "addresses": [` + strings.TrimSuffix(addresses(65_000), ",") + "]}}"},
	"a list of lists": {annotation: "net", config: `{"type": "bridge", "x": [` + strings.TrimSuffix(fill("[],", 65_000), ",") + "]}"},
	"a long chain":    {annotation: "net", config: `{"plugins": [` + strings.TrimSuffix(fill(`{"type": "a"},`, 65_000), ",") + "]}", refused: "are too many"},
}

// maxAnnotation is what Kubernetes allows.
const maxAnnotation = 256 << 10

func fill(item string, size int) string { return strings.Repeat(item, size/len(item)) }

func list(item string, size int) string {
	return "[" + strings.TrimSuffix(fill(item+",", size-2), ",") + "]"
}

func numbered(format string, size int) string {
	var b strings.Builder
	for i := 1; b.Len() < size-len(format)-5; i++ {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func routes(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size-40; i++ {
		fmt.Fprintf(&b, `{"dst":"10.%d.%d.0/%d"},`, i>>8&255, i&255, 9+i%24)
	}
	return b.String()
}

func addresses(size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size-40; i++ {
		fmt.Fprintf(&b, `{"address":"10.%d.%d.%d/8"},`, i>>16&255, i>>8&255, i&255)
	}
	return b.String()
}

func worstInput(annotation, config string) plan.Input {
	in := input(annotation)
	in.Definition = func(namespace, name string) (plan.Definition, bool) {
		return plan.Definition{Namespace: namespace, Name: name, Config: config}, true
	}
	return in
}

// TestTheWorstIsRefusedOrPlanned: what it takes is measured by
// BenchmarkWorst, a few milliseconds for most and never a second.
func TestTheWorstIsRefusedOrPlanned(t *testing.T) {
	for name, c := range worst {
		t.Run(name, func(t *testing.T) {
			if len(c.annotation) > maxAnnotation {
				t.Fatalf("an annotation of %d bytes", len(c.annotation))
			}
			p, err := plan.Build(worstInput(c.annotation, c.config))
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("want %q, have %v", c.refused, err)
			case err != nil && len(err.Error()) > 600:
				t.Errorf("an error of %d bytes floods the event", len(err.Error()))
			}
			for _, a := range p.Attachments {
				if reasons := strings.Join(a.Reasons, "\n"); len(reasons) > 8<<10 {
					t.Errorf("%d bytes of reasons for %s", len(reasons), a.IfName)
				}
			}
		})
	}
}

func BenchmarkWorst(b *testing.B) {
	for name, c := range worst {
		b.Run(name, func(b *testing.B) {
			in := worstInput(c.annotation, c.config)
			for b.Loop() {
				_, err := plan.Build(in)
				if (err == nil) != (c.refused == "") {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWorstChange is an edit of every element of the longest list.
func BenchmarkWorstChange(b *testing.B) {
	const config = `{"type": "a", "capabilities": {"ips": true, "portMappings": true}}`
	elements := func(edit int) string {
		var list []string
		for i := range 256 {
			list = append(list, fmt.Sprintf(`{"name": "net", "ips": ["10.0.%d.%d"], "cni-args": {"a": %d, "b": 2, "c": 3}, "portMappings": [{"hostPort": %d, "containerPort": 1}]}`,
				edit, i%250+1, i+edit*1000, i+1))
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	p, err := plan.Build(worstInput(elements(0), config))
	if err != nil {
		b.Fatal(err)
	}
	in := worstInput(elements(1), config)
	for b.Loop() {
		if c, err := plan.ChangeOf(in, p.Attachments); err != nil || len(c.Add) != 256 {
			b.Fatal(err)
		}
	}
}
