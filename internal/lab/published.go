package lab

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"time"

	"sigs.k8s.io/yaml"
)

// An object is one that exists on an ordinary cluster because its installer
// made it, and that programs which look at a cluster read.
type object struct {
	// Collection is the path of the collection that it belongs to.
	Collection string
	Body       []byte
}

// publish writes down in the cluster how it was set up, where kubeadm and the
// networks' own manifests do.
func (b *builder) publish(ctx context.Context) error {
	objects, err := b.cfg.objects()
	if err != nil {
		return err
	}
	for _, o := range objects {
		// The API server makes the namespaces of the system a moment after it is ready.
		wait := Wait{What: o.Collection, Limit: 30 * time.Second}
		err := b.progress.Wait(ctx, wait, func(ctx context.Context) error {
			err := b.api.create(ctx, o)
			var status *statusError
			if errors.As(err, &status) && status.code == http.StatusConflict {
				return nil // it is there already: the answer to an earlier attempt was lost
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// objects are what this lab publishes.
func (c Config) objects() ([]object, error) {
	if c.ControlPlaneOnly {
		return nil, nil
	}
	proxy, err := yaml.Marshal(c.proxySettings())
	if err != nil {
		return nil, err
	}
	list := []object{configMap("kube-system", "kube-proxy", map[string]string{"config.conf": string(proxy)})}
	if backend := c.flannelBackend(); backend != "" {
		list = append(list,
			object{"/api/v1/namespaces", render(map[string]any{
				"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "kube-flannel"},
			}, json.Marshal)},
			configMap("kube-flannel", "kube-flannel-cfg", map[string]string{
				"net-conf.json": string(flannelConfig(backend)), "cni-conf.json": string(flannelNetwork()),
			}))
	}
	if c.cilium() {
		list = append(list, configMap("kube-system", "cilium-config", c.ciliumConfigMap()))
	}
	return list, nil
}

// ciliumConfigMap is what the chart makes of the values that this lab stands
// for; the agent gets its part of it.
func (c Config) ciliumConfigMap() map[string]string {
	data := c.ciliumOptions()
	maps.Copy(data, ciliumPool)
	if c.ciliumIsLatent() {
		data["custom-cni-conf"] = "true" // of the chart; no program reads it
	}
	return data
}

func configMap(namespace, name string, data map[string]string) object {
	return object{"/api/v1/namespaces/" + namespace + "/configmaps", render(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": namespace}, "data": data,
	}, json.Marshal)}
}
