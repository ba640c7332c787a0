package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// A component is a program of the control plane and how it is started.
type component struct {
	Name string
	Args []string
}

// etcd keeps nothing that outlives the lab, so it need not wait for a disk.
func (p paths) etcd() component {
	return component{"etcd", []string{
		"--data-dir=" + p.dir() + "/etcd",
		"--unsafe-no-fsync=true",
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		"--log-level=warn",
	}}
}

func (p paths) apiserver() component {
	return component{"kube-apiserver", []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + mgmtHost.String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--service-cluster-ip-range=" + serviceNet.String(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + p.pki("ca.crt"),
		// Nobody proxies with this name; without it, the others complain.
		"--requestheader-client-ca-file=" + p.pki("ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--tls-cert-file=" + p.pki("kube-apiserver.crt"),
		"--tls-private-key-file=" + p.pki("kube-apiserver.key"),
		"--kubelet-certificate-authority=" + p.pki("ca.crt"),
		"--kubelet-client-certificate=" + p.pki("kubelet-client.crt"),
		"--kubelet-client-key=" + p.pki("kubelet-client.key"),
		// A node's name means nothing on the host.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + p.pki("service-accounts.key"),
		"--service-account-signing-key-file=" + p.pki("service-accounts.key"),
		"--allow-privileged=true",
		"--profiling=false",
	}}
}

func (p paths) controllerManager() component {
	config := p.kubeconfig("kube-controller-manager")
	return component{"kube-controller-manager", []string{
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1",
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + podNet.String(),
		"--node-cidr-mask-size=24",
		"--service-cluster-ip-range=" + serviceNet.String(),
		"--root-ca-file=" + p.pki("ca.crt"),
		"--service-account-private-key-file=" + p.pki("service-accounts.key"),
		"--use-service-account-credentials=true",
		"--leader-elect=false",
		// The defaults (20, 30) make a cold start wait for itself for 4 s.
		"--kube-api-qps=200",
		"--kube-api-burst=400",
	}}
}

func (p paths) scheduler() component {
	config := p.kubeconfig("kube-scheduler")
	return component{"kube-scheduler", []string{
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		// The defaults (20, 30) make a cold start wait for itself for 4 s.
		"--kube-api-qps=200",
		"--kube-api-burst=400",
	}}
}

// startControlPlane starts etcd and the API server, waits until the API server
// is ready, and starts the programs that would give up without it.
func (b *builder) startControlPlane(ctx context.Context) error {
	for _, c := range []component{b.etcd(), b.apiserver()} {
		if err := b.start(c); err != nil {
			return err
		}
	}
	api, err := newAPI(b.paths, b.world.ns)
	if err != nil {
		return err
	}
	b.api = api
	if err := b.waitReady(ctx); err != nil {
		return err
	}
	b.progress.Printf("API server ready at https://%s (inside network namespace %s)",
		netip.AddrPortFrom(mgmtHost, apiPort), b.netnsName())
	close(b.apiReady)
	for _, c := range []component{b.controllerManager(), b.scheduler()} {
		if err := b.start(c); err != nil {
			return err
		}
	}
	return b.startOperator()
}

func (b *builder) start(c component) error {
	p, err := b.world.spawn(c.Name, b.log(c.Name), append([]string{b.bin[c.Name]}, c.Args...))
	if err != nil {
		return err
	}
	return b.record(p)
}

func (b *builder) waitReady(ctx context.Context) error {
	wait := Wait{What: "/readyz of the API server", Limit: 120 * time.Second, Every: 50 * time.Millisecond}
	err := b.progress.Wait(ctx, wait, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		text, err := b.api.raw(ctx, "/readyz")
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(text)) != "ok" {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
	return quote(err, b.log("kube-apiserver"))
}
