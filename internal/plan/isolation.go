package plan

import (
	"fmt"
	"slices"
)

// Isolation restricts the definitions that a pod may use to those of its own
// namespace and of a few others, which the NPWG specification allows. The zero
// value restricts nothing.
type Isolation struct {
	On bool
	// Global are the namespaces whose definitions every pod may use.
	Global []string
}

// Validate refuses what is no name of a namespace.
func (i Isolation) Validate() error {
	for _, namespace := range i.Global {
		if _, err := namespaceName(namespace); err != nil {
			return fmt.Errorf("globalNamespaces: %w", err)
		}
	}
	return nil
}

// permits refuses a definition of a namespace that pods of another one must
// not use. It is asked before the definition is looked up: whether there is
// one is not the pod's business either.
func (i Isolation) permits(pod, namespace string) error {
	if !i.On || namespace == pod || slices.Contains(i.Global, namespace) {
		return nil
	}
	return invalid("pods of namespace %q may not use the networks of namespace %q (namespaceIsolation); "+
		"use a NetworkAttachmentDefinition of namespace %[1]q, or have the administrator add %[2]q to globalNamespaces", pod, namespace)
}
