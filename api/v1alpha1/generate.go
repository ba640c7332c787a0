// +groupName=braid.dev
// +kubebuilder:object:generate=true

package v1alpha1
