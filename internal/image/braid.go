package image

import "path/filepath"

// Ref is the name that the manifests in deploy/ know Braid's image by.
const Ref = "braid.dev/braid:dev"

// programs are the programs of Braid, each at /usr/bin/NAME in its image.
var programs = [...]string{"braid", "braid-cni", "braidd"}

// Braid is Braid's own image, from the static binaries in a directory such as
// "bin", where "make build" puts them.
func Braid(binDir, ref string) Spec {
	s := Spec{
		Ref:        ref,
		Entrypoint: []string{"/usr/bin/braidd"},
		Env:        []string{"PATH=/usr/bin"},
		User:       "0:0",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "braid",
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	for _, p := range programs {
		s.Files = append(s.Files, File{Path: "/usr/bin/" + p, Source: filepath.Join(binDir, p), Mode: 0o755})
	}
	return s
}
