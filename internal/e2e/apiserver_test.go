package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"braid.dev/braid/internal/lab"
)

// object is an object of Kubernetes as JSON has it.
type object = map[string]any

// access is what a kubeconfig says: where the API server is and who asks.
type access struct {
	address string // host and port
	ca      []byte // PEM
	tls     *tls.Config
}

func readAccess(kubeconfig string) (access, error) {
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		return access{}, err
	}
	var c struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     string `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Cert string `json:"client-certificate-data"`
				Key  string `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return access{}, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	if len(c.Clusters) != 1 || len(c.Users) != 1 {
		return access{}, fmt.Errorf("%s: it has %d clusters and %d users", kubeconfig, len(c.Clusters), len(c.Users))
	}
	decode := base64.StdEncoding.DecodeString
	ca, errCA := decode(c.Clusters[0].Cluster.CA)
	cert, errCert := decode(c.Users[0].User.Cert)
	key, errKey := decode(c.Users[0].User.Key)
	pair, errPair := tls.X509KeyPair(cert, key)
	if err := errors.Join(errCA, errCert, errKey, errPair); err != nil {
		return access{}, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return access{
		address: strings.TrimPrefix(c.Clusters[0].Cluster.Server, "https://"),
		ca:      ca,
		tls:     &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool},
	}, nil
}

// api asks the lab's API server as cluster-admin, without a program per question.
type api struct {
	access
	http http.Client
}

func newAPI(l *lab.Lab) (*api, error) {
	access, err := readAccess(l.Kubeconfig())
	if err != nil {
		return nil, err
	}
	return &api{access: access, http: http.Client{
		Timeout:   20 * time.Second,
		Transport: &http.Transport{DialContext: l.Dial, TLSClientConfig: access.tls, MaxIdleConnsPerHost: 16},
	}}, nil
}

// statusError is an answer of the API server that is none of success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.code, e.text) }

// isCode reports whether err is an answer of the API server with this code.
func isCode(err error, code int) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == code
}

// do asks once. The answer is decoded into "into" unless that is nil.
func (a *api) do(ctx context.Context, method, path, contentType string, body, into any) error {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+a.address+path, in)
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", contentType)
	}
	answer, err := a.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %w", method, path, &statusError{answer.StatusCode, string(text)})
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// create makes an object in a collection; that it is there already is no error.
func (a *api) create(ctx context.Context, collection string, o object) error {
	err := a.do(ctx, http.MethodPost, collection, "application/json", o, nil)
	if isCode(err, http.StatusConflict) {
		return nil
	}
	return err
}

func (a *api) get(ctx context.Context, path string, into any) error {
	return a.do(ctx, http.MethodGet, path, "", nil, into)
}

// patch merges into an object.
func (a *api) patch(ctx context.Context, path string, o object) error {
	return a.do(ctx, http.MethodPatch, path, "application/merge-patch+json", o, nil)
}

// remove deletes an object at once; that there is none is no error.
func (a *api) remove(ctx context.Context, path string) error {
	err := a.do(ctx, http.MethodDelete, path+"?gracePeriodSeconds=0", "", nil, nil)
	if isCode(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// namespace makes a namespace in which pods can be created.
func (a *api) namespace(ctx context.Context, name string) error {
	if err := a.create(ctx, "/api/v1/namespaces", object{"metadata": object{"name": name}}); err != nil {
		return err
	}
	return a.create(ctx, "/api/v1/namespaces/"+name+"/serviceaccounts", object{"metadata": object{"name": "default"}})
}

// braiddToken is a token for the braidd of a node, bound to a pod there as the
// kubelet would have it.
func (a *api) braiddToken(ctx context.Context, node string) (string, error) {
	const namespace = "/api/v1/namespaces/braid-system"
	pod := podObject("braidd-"+node, node, nil)
	pod["spec"].(object)["serviceAccountName"] = "braidd"
	if err := a.create(ctx, namespace+"/pods", pod); err != nil {
		return "", err
	}
	var made struct {
		Metadata struct{ UID string }
	}
	if err := a.get(ctx, namespace+"/pods/braidd-"+node, &made); err != nil {
		return "", err
	}
	request := object{"spec": object{
		"audiences": []string{}, "expirationSeconds": 7200,
		"boundObjectRef": object{"kind": "Pod", "apiVersion": "v1", "name": "braidd-" + node, "uid": made.Metadata.UID},
	}}
	var answer struct{ Status struct{ Token string } }
	err := a.do(ctx, http.MethodPost, namespace+"/serviceaccounts/braidd/token", "application/json", request, &answer)
	return answer.Status.Token, err
}

// podObject is a pod that no kubelet will run.
func podObject(name, node string, annotations map[string]string) object {
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": name, "annotations": annotations},
		"spec": object{
			"nodeName": node, "tolerations": []object{{"operator": "Exists"}}, "terminationGracePeriodSeconds": 0,
			"automountServiceAccountToken": false, "containers": []object{{"name": "none", "image": "none"}},
		},
	}
}
