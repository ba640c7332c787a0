package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/internal/netns"
)

// An api asks the lab's API server the few questions that bringing a lab up
// takes. It dials inside the lab's network namespace.
type api struct{ http http.Client }

func newAPI(p paths, ns *netns.NS) (*api, error) {
	cert, err := tls.LoadX509KeyPair(p.pki("admin.crt"), p.pki("admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(p.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s contains no certificate", p.pki("ca.crt"))
	}
	return &api{http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     dialIn(ns),
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool},
		},
	}}, nil
}

// dialIn dials addresses inside ns. A socket belongs to the namespace of the
// thread that made it; the address is a literal, so that the dialer makes its
// socket on the goroutine it is called on.
func dialIn(ns *netns.NS) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		err = ns.Do(func() error {
			var d net.Dialer
			c, err := d.DialTCP(ctx, network, netip.AddrPort{}, to)
			conn = c
			return err
		})
		if err != nil {
			return nil, err // conn would hold a typed nil
		}
		return conn, nil
	}
}

func (a *api) raw(ctx context.Context, path string) ([]byte, error) {
	return a.do(ctx, http.MethodGet, path, nil)
}

// create makes an object.
func (a *api) create(ctx context.Context, o object) error {
	_, err := a.do(ctx, http.MethodPost, o.Collection, o.Body)
	return err
}

// A statusError is an answer other than success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func (a *api) do(ctx context.Context, method, path string, in []byte) ([]byte, error) {
	url := fmt.Sprintf("https://%s%s", netip.AddrPortFrom(mgmtHost, apiPort), path)
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = &statusError{resp.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, resp.Status, tail(body, 3))}
	}
	return body, err
}

func (a *api) get(ctx context.Context, path string, into any) error {
	body, err := a.raw(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func (a *api) node(ctx context.Context, name string) (corev1.Node, error) {
	var n corev1.Node
	err := a.get(ctx, "/api/v1/nodes/"+name, &n)
	return n, err
}

// podCIDR returns the range that the controller manager gave to the node.
func (a *api) podCIDR(ctx context.Context, name string) (netip.Prefix, error) {
	n, err := a.node(ctx, name)
	if err != nil {
		return netip.Prefix{}, err
	}
	if n.Spec.PodCIDR == "" {
		return netip.Prefix{}, errors.New("the node has no podCIDR yet")
	}
	return netip.ParsePrefix(n.Spec.PodCIDR)
}

// nodeReady returns nil when the kubelet of the node reports Ready, and has
// done so since a moment, to the second.
func nodeReady(n corev1.Node, since time.Time) error {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
				return errors.New("its kubelet has reported nothing since")
			}
			if c.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("not Ready: %s: %s", c.Reason, c.Message)
		}
	}
	return errors.New("its kubelet has reported nothing yet")
}
