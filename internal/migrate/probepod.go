package migrate

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"braid.dev/braid/api/v1alpha1"
)

const (
	// ProbePort is where probes answer.
	ProbePort = 8080
	// NodePort is where a node's daemon answers as the same application, at the
	// node's own address.
	NodePort = 8379
)

// Manifest is the pod of a probe: Braid's own image, as the application that
// tells each client its address. It is bound to its node, whatever that one's
// taints, and asks for nothing of the API.
func (p ProbePod) Manifest(image string) *corev1.Pod {
	no, yes, user := false, true, int64(65534)
	// With 0 the object would be gone before the kubelet has taken the network
	// down, and the runtime could be given another one too early.
	grace := int64(1)
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ProbeNamespace, Name: p.Name(),
			Labels: map[string]string{SideLabel: string(p.Side), "app.kubernetes.io/name": "braid-probe"},
		},
		Spec: corev1.PodSpec{
			NodeName:                      p.Node,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "probe", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"/usr/bin/braidd", "probe"},
				Env: []corev1.EnvVar{
					{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
					{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: ProbePort}},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(ProbePort)}},
					PeriodSeconds: 1, TimeoutSeconds: 3,
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// ProbeService is the name of the service of the probes of a side.
func ProbeService(s v1alpha1.Side) string {
	return map[v1alpha1.Side]string{v1alpha1.Source: "probe-source", v1alpha1.Target: "probe-target"}[s]
}
