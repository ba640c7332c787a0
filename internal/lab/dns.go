package lab

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"braid.dev/braid/internal/image"
)

// dnsImage is CoreDNS, with the plugins of lab/coredns.
const dnsImage = "braid.dev/coredns:dev"

// dnsProgram serves DNS where a lab is asked for it.
var dnsProgram = program{Name: "coredns", For: "dns", Module: "lab/coredns", Package: modulePath + "/lab/coredns", LDFlags: "-s -w"}

func dnsSpec(program string) image.Spec {
	return image.Spec{
		Ref:        dnsImage,
		Entrypoint: []string{"/coredns"},
		Files:      []image.File{{Path: "/coredns", Source: program, Mode: 0o755}},
	}
}

//go:embed dns.yaml
var dnsManifest string

// startDNS makes the DNS service, once all nodes are there, so that its two
// pods are on two of them.
func (b *builder) startDNS(ctx context.Context) error {
	if !b.cfg.DNS || b.cfg.Nodes == 0 {
		return nil
	}
	l := &Lab{paths: b.paths, state: b.ledger.state}
	manifest := strings.NewReplacer("DNS_SERVICE", DNSService.String(), "DNS_IMAGE", dnsImage).Replace(dnsManifest)
	if _, err := l.KubectlInput(ctx, strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		return fmt.Errorf("DNS service: %w", err)
	}
	if _, err := l.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=180s"); err != nil {
		return fmt.Errorf("DNS service: %w", err)
	}
	b.progress.Printf("DNS is served at %s", DNSService)
	return nil
}
