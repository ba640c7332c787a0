package driver

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// maxAlias is the longest alias of a link, in bytes (IFALIASZ without the NUL).
const maxAlias = 255

// Key identifies the attachment on its node.
func (s Spec) Key() string { return s.ContainerID + "/" + s.IfName }

// Mark is the alias of the links that were made for the attachment. It tells
// whose they are after a crash, and when the container's namespace is gone.
func (s Spec) Mark() string {
	mark := "braid " + s.Key()
	if len(mark) > maxAlias {
		return "braid " + digest(s.Key())
	}
	return mark
}

// VethNames are the names that the node's end of the attachment's veth may
// have, the first one unless another link has it: they look as random as the
// reference plugins', but a repeated call finds what an interrupted one made.
func (s Spec) VethNames() []string {
	names := make([]string, 4)
	for try := range names {
		names[try] = "veth" + digest(fmt.Sprintf("%s %d", s.Key(), try))[:8]
	}
	return names
}

// passingGroup is the number of the links of the attachment until they are
// marked, large and as random as a hash.
func (s Spec) passingGroup() uint32 {
	sum := sha256.Sum256([]byte(s.Key()))
	return binary.BigEndian.Uint32(sum[:]) | 1<<30
}

// passingName is what a link of the attachment is called until it is marked.
func (s Spec) passingName() string { return "braid" + digest(s.Key())[:8] }

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
