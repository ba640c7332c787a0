package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
)

const deviceID = "k8s.cni.cncf.io/deviceID"

// resourceSlice is one of a pool, with devices that are called by their name in
// capitals; node is empty for one that several nodes reach.
func resourceSlice(name, driver, node, pool string, generation int64, devices ...string) *resourcev1.ResourceSlice {
	s := &resourcev1.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: resourcev1.ResourceSliceSpec{
			Driver: driver, Pool: resourcev1.ResourcePool{Name: pool, Generation: generation, ResourceSliceCount: 1},
		},
	}
	everywhere := true
	if s.Spec.NodeName = &node; node == "" {
		s.Spec.NodeName, s.Spec.AllNodes = nil, &everywhere
	}
	for _, d := range devices {
		text, number := strings.ToUpper(d), int64(7)
		s.Spec.Devices = append(s.Spec.Devices, resourcev1.Device{
			Name: d,
			Attributes: map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{
				deviceID: {StringValue: &text}, "numa": {IntValue: &number},
			},
		})
	}
	return s
}

// published is an API server that has these, and gives them out one by one.
type published struct {
	dynamic.ResourceInterface
	slices []*resourcev1.ResourceSlice
	asked  []string
	err    error
}

func (p *published) List(_ context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	if p.err != nil {
		return nil, p.err
	}
	if o.Continue == "" {
		p.asked = append(p.asked, o.FieldSelector)
	}
	selector, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		return nil, err
	}
	at, _ := strconv.Atoi(o.Continue)
	for i := at; i < len(p.slices); i++ {
		s := p.slices[i]
		node := ""
		if s.Spec.NodeName != nil {
			node = *s.Spec.NodeName
		}
		if !selector.Matches(fields.Set{"spec.driver": s.Spec.Driver, "spec.nodeName": node}) {
			continue
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(s)
		page := &unstructured.UnstructuredList{Items: []unstructured.Unstructured{{Object: object}}}
		page.SetContinue(strconv.Itoa(i + 1))
		return page, err
	}
	return &unstructured.UnstructuredList{}, nil
}

func TestAttributesAreThoseOfTheNewestSlicesOfAPool(t *testing.T) {
	p := &published{slices: []*resourcev1.ResourceSlice{
		resourceSlice("old", "sriov.example", "n1", "n1", 1, "vf1", "vf9"),
		resourceSlice("new-1", "sriov.example", "n1", "n1", 2, "vf1", "vf2"),
		resourceSlice("late", "sriov.example", "n1", "n1", 1, "vf3"),
		resourceSlice("new-2", "sriov.example", "n1", "n1", 2, "vf3", "vf4"),
		resourceSlice("pool", "sriov.example", "n1", "other", 3, "vf4", "vf5"),
		resourceSlice("node", "sriov.example", "n2", "n1", 3, "vf5"),
		resourceSlice("driver", "gpu.example", "n1", "n1", 3, "vf5"),
	}}
	s := &ResourceSlices{client: p, node: "n1"}
	got, err := s.Attributes(t.Context(), "sriov.example", "n1", []string{"vf2", "vf3"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{"vf2": {deviceID: "VF2"}, "vf3": {deviceID: "VF3"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"spec.driver=sriov.example,spec.nodeName=n1"}, p.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestDevicesOfAPoolOfSeveralNodesAreFound(t *testing.T) {
	p := &published{slices: []*resourcev1.ResourceSlice{
		resourceSlice("a", "fabric.example", "", "rack", 1, "port1"),
		resourceSlice("b", "fabric.example", "n2", "n2", 1, "port2"),
	}}
	s := &ResourceSlices{client: p, node: "n1"}
	got, err := s.Attributes(t.Context(), "fabric.example", "rack", []string{"port1", "port2"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]map[string]string{"port1": {deviceID: "PORT1"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(p.asked) != 2 {
		t.Errorf("asked %q", p.asked)
	}
}

func TestSlicesThatCannotBeReadAreAnError(t *testing.T) {
	away := errors.New("connection refused")
	s := &ResourceSlices{client: &published{err: away}, node: "n1"}
	_, err := s.Attributes(t.Context(), "sriov.example", "n1", []string{"vf1"})
	if !errors.Is(err, away) || !strings.Contains(fmt.Sprint(err), "spec.driver=sriov.example") {
		t.Errorf("error %v", err)
	}
}

// With a real API server, as braidd.
func TestClusterBraiddReadsWhatDriversPublish(t *testing.T) {
	s := needAPIServer(t)
	for _, slice := range []*resourcev1.ResourceSlice{
		resourceSlice("slices-1", "sriov.example", "slices-1", "slices-1", 1, "vf1", "vf2"),
		resourceSlice("slices-2", "sriov.example", "slices-2", "slices-2", 1, "vf1"),
		resourceSlice("slices-3", "sriov.example", "", "rack", 1, "port1"),
	} {
		if _, err := s.admin.ResourceV1().ResourceSlices().Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.admin.ResourceV1().ResourceSlices().Delete(context.Background(), slice.Name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	cluster, err := connect(s.braiddConfig(t, "slices-1"), Config{NodeName: "slices-1"})
	if err != nil {
		t.Fatal(err)
	}
	for pool, want := range map[string]map[string]map[string]string{
		"slices-1": {"vf2": {deviceID: "VF2"}},
		"rack":     {"port1": {deviceID: "PORT1"}},
		"nothing":  {},
	} {
		got, err := cluster.ResourceSlices.Attributes(t.Context(), "sriov.example", pool, []string{"vf2", "port1"})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("pool %s (-want +got):\n%s", pool, diff)
		}
	}
}
