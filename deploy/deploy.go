// Package deploy holds the manifests that install Braid, so that its command
// line has those that fit it.
package deploy

import (
	"bytes"
	"embed"
	"fmt"
)

//go:embed namespace.yaml crds/braid.dev_migrations.yaml crds/braid.dev_nodemigrations.yaml migrate
var files embed.FS

// Image is the image that the manifests name.
const Image = "braid.dev/braid:dev"

// Migrate returns, as one stream of YAML, what `kubectl apply -k deploy/migrate`
// applies and the namespace before that, with another image.
func Migrate(image string) ([]byte, error) {
	var all bytes.Buffer
	for _, name := range []string{
		"namespace.yaml", "crds/braid.dev_migrations.yaml", "crds/braid.dev_nodemigrations.yaml",
		"migrate/namespace.yaml", "migrate/services.yaml", "migrate/rbac.yaml", "migrate/admission.yaml", "migrate/daemonset.yaml",
	} {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&all, "---\n%s\n", bytes.ReplaceAll(text, []byte(Image), []byte(image)))
	}
	return all.Bytes(), nil
}
