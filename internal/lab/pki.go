package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"
)

// certLifetime is longer than any lab lives.
const certLifetime = 365 * 24 * time.Hour

// An authority signs the certificates of one lab and of no other.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// An identity is what a certificate says of its holder.
type identity struct {
	// User and Groups are who Kubernetes takes the holder for.
	User   string
	Groups []string
	// Names and Addrs are what a server may be called; a client has none.
	Names []string
	Addrs []netip.Addr
}

// A keyPair is a certificate and its key, in PEM.
type keyPair struct{ Cert, Key []byte }

func newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := template(pkix.Name{CommonName: "braid-lab"}, now)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: encode("CERTIFICATE", der)}, nil
}

// issue signs a certificate that serves clients and servers alike.
func (a *authority) issue(id identity, now time.Time) (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	t := template(pkix.Name{CommonName: id.User, Organization: id.Groups}, now)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.Names)+len(id.Addrs) > 0 {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	t.DNSNames = id.Names
	for _, addr := range id.Addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return keyPair{}, err
	}
	pemKey, err := encodeKey(key)
	return keyPair{Cert: encode("CERTIFICATE", der), Key: pemKey}, err
}

func template(subject pkix.Name, now time.Time) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		// Guests have a clock of their own, set at boot to whole seconds.
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(certLifetime),
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// encodeKey uses the form from which the API server can also take the public
// key of service accounts.
func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return encode("EC PRIVATE KEY", der), err
}

// identities are the holders of certificates of a lab, by the name of the file.
func identities(nodes []node) map[string]identity {
	ids := map[string]identity{
		"kube-apiserver": {
			User: "kube-apiserver",
			Names: []string{
				"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
			},
			Addrs: []netip.Addr{mgmtHost, apiService, netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		},
		"kubelet-client":          {User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		"admin":                   {User: "admin", Groups: []string{"system:masters"}},
		"kube-controller-manager": {User: "system:kube-controller-manager"},
		"kube-scheduler":          {User: "system:kube-scheduler"},
		"kube-proxy":              {User: "system:kube-proxy"},
	}
	for _, n := range nodes {
		ids[n.Name] = identity{
			User: "system:node:" + n.Name, Groups: []string{"system:nodes"},
			Names: []string{n.Name}, Addrs: []netip.Addr{n.Addr},
		}
	}
	return ids
}

// kubeconfigUsers are the identities that reach the API server through a
// kubeconfig.
func kubeconfigUsers(nodes []node) []string {
	users := []string{"admin", "kube-controller-manager", "kube-scheduler", "kube-proxy"}
	for _, n := range nodes {
		users = append(users, n.Name)
	}
	return users
}

// writePKI makes the certificates of the lab and the kubeconfigs that carry
// them.
func writePKI(p paths, nodes []node, now time.Time) error {
	ca, err := newAuthority(now)
	if err != nil {
		return err
	}
	files := map[string][]byte{p.pki("ca.crt"): ca.pem}
	pairs := map[string]keyPair{}
	for name, id := range identities(nodes) {
		pair, err := ca.issue(id, now)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", name, err)
		}
		pairs[name] = pair
		files[p.pki(name+".crt")], files[p.pki(name+".key")] = pair.Cert, pair.Key
	}
	for _, user := range kubeconfigUsers(nodes) {
		server := fmt.Sprintf("https://%s", netip.AddrPortFrom(mgmtHost, apiPort))
		if files[p.kubeconfig(user)], err = kubeconfig(user, server, ca.pem, pairs[user]); err != nil {
			return err
		}
	}
	serviceAccounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if files[p.pki("service-accounts.key")], err = encodeKey(serviceAccounts); err != nil {
		return err
	}
	return writeFiles(files)
}

// kubeconfig renders the file with which user reaches the API server.
func kubeconfig(user, server string, ca []byte, pair keyPair) ([]byte, error) {
	b64 := base64.StdEncoding.EncodeToString
	type m = map[string]any
	return yaml.Marshal(m{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []m{{"name": "lab", "cluster": m{"server": server, "certificate-authority-data": b64(ca)}}},
		"users":           []m{{"name": user, "user": m{"client-certificate-data": b64(pair.Cert), "client-key-data": b64(pair.Key)}}},
		"contexts":        []m{{"name": "lab", "context": m{"cluster": "lab", "user": user}}},
		"current-context": "lab",
	})
}

// writeFiles writes files that only root may read, by path.
func writeFiles(files map[string][]byte) error {
	for path, data := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
