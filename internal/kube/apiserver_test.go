package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"braid.dev/braid/internal/lab"
)

// apiServer is a real kube-apiserver with a real etcd, on loopback addresses,
// with Braid's deploy/ applied by a real kubectl. There is no controller, no
// scheduler and no kubelet.
type apiServer struct {
	dir      string
	bin      lab.Binaries
	etcdPort int
	port     int

	etcd, api *process

	config *rest.Config // cluster-admin
	admin  kubernetes.Interface
	dyn    dynamic.Interface
}

const adminToken = "the-admin-of-this-test"

// needAPIServer returns the API server that the tests of this package share.
// It is cleared of what tests left behind by giving each test its own
// namespace.
func needAPIServer(t *testing.T) *apiServer {
	t.Helper()
	if os.Getenv("BRAID_TIER") != "cluster" {
		t.Skip("needs kube-apiserver, etcd and kubectl: BRAID_TIER=cluster")
	}
	shared.once.Do(func() { shared.server, shared.err = startAPIServer() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

var shared struct {
	once   sync.Once
	server *apiServer
	err    error
}

func TestMain(m *testing.M) {
	// It tells of each event that is dropped, and of each request that fails.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	code := m.Run()
	if s := shared.server; s != nil {
		s.stop()
	}
	os.Exit(code)
}

func startAPIServer() (_ *apiServer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	bin, err := lab.Build(ctx, lab.BuildConfig{
		Only:     []string{"kube-apiserver", "etcd", "kubectl"},
		Progress: lab.NewProgress(os.Stderr),
	})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "braid-kube")
	if err != nil {
		return nil, err
	}
	s := &apiServer{dir: dir, bin: bin}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	if err := s.connect(); err != nil {
		return nil, err
	}
	if out, err := s.kubectl("apply", "-k", "../../deploy"); err != nil {
		return nil, fmt.Errorf("kubectl apply -k deploy/: %w\n%s", err, out)
	}
	return s, nil
}

// freePorts returns ports that differ and that nobody listened on just now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // only then, so that the next is another one
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func (s *apiServer) start(ctx context.Context) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	s.etcdPort, s.port = ports[0], ports[2]
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv": fmt.Appendf(nil, "%s,admin,admin,system:masters\n", adminToken),
	}
	for name, content := range files {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			return err
		}
	}
	s.etcd, err = s.spawn("etcd",
		"--data-dir="+s.path("etcd"), "--unsafe-no-fsync=true", "--log-level=error",
		"--listen-client-urls="+s.etcdURL(), "--advertise-client-urls="+s.etcdURL(),
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", ports[1]),
		fmt.Sprintf("--initial-advertise-peer-urls=http://127.0.0.1:%d", ports[1]),
		fmt.Sprintf("--initial-cluster=default=http://127.0.0.1:%d", ports[1]))
	if err != nil {
		return err
	}
	return s.startAPI(ctx)
}

// startAPI starts the API server, for the first time or again, and waits until
// it is ready.
func (s *apiServer) startAPI(ctx context.Context) (err error) {
	s.api, err = s.spawn("kube-apiserver",
		"--etcd-servers="+s.etcdURL(),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		fmt.Sprintf("--secure-port=%d", s.port),
		"--cert-dir="+s.path("certs"),
		"--token-auth-file="+s.path("tokens.csv"),
		"--authorization-mode=Node,RBAC",
		// Nobody makes the service accounts that pods run under here.
		"--enable-admission-plugins=NodeRestriction", "--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://braid.test",
		"--service-account-key-file="+s.path("sa.key"), "--service-account-signing-key-file="+s.path("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--allow-privileged=true", "--profiling=false")
	if err != nil {
		return err
	}
	return s.waitReady(ctx)
}

func (s *apiServer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Polling: the API server tells nobody that it has become ready.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := s.kubectl("get", "--raw=/readyz"); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.api.ended:
			return fmt.Errorf("kube-apiserver ended\n%s", s.log("kube-apiserver"))
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver is not ready: %w\n%s", ctx.Err(), s.log("kube-apiserver"))
		}
	}
}

func (s *apiServer) connect() error {
	s.config = &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", s.port),
		BearerToken:     adminToken,
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.path("certs/apiserver.crt")},
		QPS:             1000, Burst: 1000,
	}
	var err error
	if s.admin, err = kubernetes.NewForConfig(s.config); err != nil {
		return err
	}
	s.dyn, err = dynamic.NewForConfig(s.config)
	return err
}

func (s *apiServer) path(name string) string { return filepath.Join(s.dir, name) }
func (s *apiServer) etcdURL() string         { return fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort) }

// process is a program that runs. ended is closed when it has ended.
type process struct {
	*os.Process
	ended chan struct{}
}

func (p *process) kill() {
	p.Kill()
	<-p.ended
}

func (s *apiServer) spawn(name string, args ...string) (*process, error) {
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(s.bin[name], args...)
	cmd.Stdout, cmd.Stderr = log, log
	// It goes when this test goes, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd.Process, make(chan struct{})}
	go func() {
		cmd.Wait() // however it ends; its log says why
		close(p.ended)
	}()
	return p, nil
}

func (s *apiServer) log(name string) string {
	text, _ := os.ReadFile(s.path(name + ".log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// stopAPI kills the API server only.
func (s *apiServer) stopAPI() { s.api.kill() }

func (s *apiServer) stop() {
	for _, p := range []*process{s.api, s.etcd} {
		if p != nil {
			p.kill()
		}
	}
	os.RemoveAll(s.dir)
}

// kubectl runs the real kubectl as cluster-admin and returns all its output.
func (s *apiServer) kubectl(args ...string) (string, error) {
	cmd := exec.Command(s.bin["kubectl"], append([]string{
		fmt.Sprintf("--server=https://127.0.0.1:%d", s.port), "--token=" + adminToken, "--insecure-skip-tls-verify",
		"--cache-dir=" + s.path("kubectl-cache"), "--kubeconfig=/dev/null",
	}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// namespace makes a namespace for one test.
func (s *apiServer) namespace(t *testing.T) string {
	t.Helper()
	ns, err := s.admin.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// pod makes a pod that is bound to a node at once, as if it had been scheduled.
func (s *apiServer) pod(t *testing.T, namespace, name, node string, annotations map[string]string) *corev1.Pod {
	t.Helper()
	pod, err := s.admin.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: new(int64),
			Containers:                    []corev1.Container{{Name: "c", Image: "example.test/c:1"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func (s *apiServer) deletePod(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	err := s.admin.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, *metav1.NewDeleteOptions(0))
	if err != nil {
		t.Fatal(err)
	}
}

// braiddConfig is how braidd on that node reaches the API: by the token that
// the kubelet mounts into its pod. Without a node, the token names none.
func (s *apiServer) braiddConfig(t *testing.T, node string) *rest.Config {
	t.Helper()
	request := &authv1.TokenRequest{}
	if node != "" {
		_, err := s.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		pod, err := s.admin.CoreV1().Pods("braid-system").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "braidd-"},
			Spec: corev1.PodSpec{
				NodeName:           node,
				ServiceAccountName: "braidd",
				Containers:         []corev1.Container{{Name: "braidd", Image: "braid.dev/braid:dev"}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = s.admin.CoreV1().Pods("braid-system").Delete(context.Background(), pod.Name, *metav1.NewDeleteOptions(0))
		})
		request.Spec.BoundObjectRef = &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	token, err := s.admin.CoreV1().ServiceAccounts("braid-system").CreateToken(t.Context(), "braidd", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.CopyConfig(s.config)
	config.BearerToken = token.Status.Token
	return config
}

// eventually waits for something that the API only shows to those who look.
func eventually(t *testing.T, what string, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}
