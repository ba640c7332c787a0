package lead

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/kube"
	"braid.dev/braid/internal/migrate"
	"braid.dev/braid/internal/migrate/probe/round"
)

func TestTheOldestMigrationThatIsNotDeletedIsDriven(t *testing.T) {
	at := func(name string, minute int, deleted bool) v1alpha1.Migration {
		m := v1alpha1.Migration{}
		m.Name, m.CreationTimestamp = name, metav1.NewTime(time.Date(2026, 11, 22, 0, minute, 0, 0, time.UTC))
		if deleted {
			m.DeletionTimestamp = &m.CreationTimestamp
		}
		return m
	}
	if m := migrate.Current([]v1alpha1.Migration{at("second", 2, false), at("gone", 0, true), at("first", 1, false)}); m == nil || m.Name != "first" {
		t.Errorf("have %+v", m)
	}
	if m := migrate.Current(nil); m != nil {
		t.Errorf("have %s of none", m.Name)
	}
}

// What is asked besides the probes: services only while somebody can answer for
// them, nodes only once their daemon was heard of.
func TestOnlyWhatCanAnswerIsAsked(t *testing.T) {
	service := func(namespace, name, ip string) corev1.Service {
		return corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip}}
	}
	node := func(name, ip string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: ip}}}}
	}
	probe := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "braid-migrate", Name: "source-node1", Labels: map[string]string{"braid.dev/side": "Source"}},
		Status:     corev1.PodStatus{PodIP: "10.243.0.2", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	heard := v1alpha1.NodeMigration{}
	heard.Name, heard.Status.Heartbeat = "node1", metav1.Now()
	snap := kube.Snapshot{
		Nodes:          []corev1.Node{node("node1", "10.0.0.1"), node("node2", "10.0.0.2")},
		NodeMigrations: []v1alpha1.NodeMigration{heard},
		Pods:           []corev1.Pod{probe},
		Services: []corev1.Service{
			service("default", "kubernetes", "10.96.0.1"), service("kube-system", "kube-dns", "10.96.0.10"),
			service("shop", "kube-dns", "10.96.0.11"), service("shop", "headless", "None"),
			service("braid-migrate", "probe-source", "10.96.0.20"), service("braid-migrate", "probe-target", "10.96.0.21"),
		},
	}
	m := v1alpha1.Migration{}
	m.Spec.From.PodCIDRs, m.Spec.To.PodCIDRs = []string{"10.243.0.0/16"}, []string{"172.20.0.0/16"}
	m.Spec.Probes.Outside = []string{"example.com:443"}
	now := time.Date(2026, 11, 22, 0, 1, 0, 0, time.UTC)
	snap.Pods[0].Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
	if w := asks(snap, m, now); len(w.Services) != 0 {
		t.Errorf("a service is asked whose probe is ready since a moment ago: %+v", w.Services)
	}
	w := asks(snap, m, now.Add(settled))
	at := netip.MustParseAddrPort
	if !slices.Equal(w.Nodes, []round.Node{{Name: "node1", Addr: at("10.0.0.1:8379")}}) ||
		!slices.Equal(w.Services, []round.Service{{Name: "probe-source", Side: v1alpha1.Source, Addr: at("10.96.0.20:80")}}) ||
		!slices.Equal(w.DNS, []netip.AddrPort{at("10.96.0.10:53")}) || !slices.Equal(w.APIServers, []netip.AddrPort{at("10.96.0.1:443")}) ||
		!slices.Equal(w.Outside, []string{"example.com:443"}) {
		t.Errorf("%+v", w)
	}
}
