package topology_test

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"braid.dev/braid/internal/topology"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestDrawingsOfTheVLANExample(t *testing.T) {
	pods, err := os.ReadFile("testdata/vlan-pods.json")
	if err != nil {
		t.Fatal(err)
	}
	view, err := topology.Parse(pods)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "vlan.txt", view.Text())
	golden(t, "vlan.svg", view.SVG())
}

func TestSVGIsWellFormedWhateverNamesSay(t *testing.T) {
	view := topology.View{Nodes: []topology.Node{{Name: `<&">`, Pods: []topology.Pod{
		{Name: "bare"},
		{Name: "p", Interfaces: []topology.Interface{{Network: `a<b>&"c"`, Name: "net1"}}},
	}}}}
	for _, v := range []topology.View{{}, view} {
		dec := xml.NewDecoder(strings.NewReader(v.SVG()))
		for {
			if _, err := dec.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v in:\n%s", err, v.SVG())
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"items":[{"metadata":{"name":"p"},"spec":{"nodeName":"n"}}]}`))
	f.Add([]byte(`{"items":[{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[null]"}},"spec":{"nodeName":"n"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		view, err := topology.Parse(data)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted what is no JSON")
		}
		view.SVG()
		view.Text()
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and read the diff):\n%s", path, got)
	}
}
