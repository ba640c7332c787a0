package differential

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/cmd/braidd/native"
	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/driver"
	driverexec "braid.dev/braid/internal/driver/exec"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// The two sides have the same methods. add attaches the container and returns
// the result; what a failed add leaves is removed as a runtime would. check and
// del work from a result, whoever made it.

// braid is Braid as braidd runs it: its tables, its attacher, its records.
type braid struct {
	*attach.Attacher
	w       *world
	records *records
	network plan.Network
}

func newBraid(t *testing.T, w *world, plugins string) *braid {
	t.Helper()
	node := native.Node{NS: w.node}
	r := &records{}
	return &braid{
		Attacher: &attach.Attacher{Drivers: native.Drivers(node), IPAM: native.IPAM(node), Store: r, BinDirs: []string{plugins}},
		w:        w, records: r, network: must(plan.ParseNetwork(w.conf(), ""))(t),
	}
}

func (b *braid) sandbox() store.Sandbox {
	return store.Sandbox{ContainerID: containerID, IfName: b.w.c.name(), NetNS: b.w.podPath, Args: b.w.c.args}
}

func (b *braid) attachment() plan.Attachment {
	return plan.Attachment{Network: b.network.Name, IfName: b.w.c.name(), Config: b.network, RuntimeConfig: b.w.c.runtime()}
}

func (b *braid) reach() attach.Reach { return attach.Reach{NS: b.w.pod, Host: host{b.w.node}} }

func (b *braid) add(ctx context.Context) ([]byte, error) {
	done, err := b.Add(ctx, b.sandbox(), plan.Plan{Attachments: []plan.Attachment{b.attachment()}}, b.reach())
	if err != nil {
		return nil, err
	}
	return json.Marshal(done[0].Result)
}

// check makes the result the one on record first.
func (b *braid) check(ctx context.Context, result []byte) error {
	if err := b.record(ctx, result); err != nil {
		return err
	}
	return b.Check(ctx, containerID, b.w.c.name(), b.reach())
}

func (b *braid) del(ctx context.Context, result []byte) error {
	if err := b.record(ctx, result); err != nil {
		return err
	}
	_, err := b.Del(ctx, containerID, b.w.c.name(), b.reach())
	return err
}

func (b *braid) record(ctx context.Context, result []byte) error {
	return b.records.Begin(ctx, []store.Record{{Sandbox: b.sandbox(), Attachment: b.attachment(), Result: result}})
}

// records is a store in memory.
type records struct {
	mu  sync.Mutex
	all []store.Record
}

func (r *records) Begin(_ context.Context, new []store.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range new {
		r.all = slices.DeleteFunc(r.all, func(o store.Record) bool { return o.Key() == n.Key() })
	}
	r.all = append(r.all, new...)
	return nil
}

func (r *records) Attached(_ context.Context, records ...store.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range records {
		for i := range r.all {
			if r.all[i].Key() == n.Key() {
				r.all[i] = n
			}
		}
	}
	return nil
}

func (r *records) Remove(_ context.Context, keys ...store.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(o store.Record) bool { return slices.Contains(keys, o.Key()) })
	return nil
}

func (r *records) Rebuild(ctx context.Context, made []store.Record, lost []store.Key) error {
	return errors.Join(r.Remove(ctx, lost...), r.Begin(ctx, made))
}

func (r *records) Sandbox(string, string) ([]store.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.all)
	slices.SortFunc(all, func(a, b store.Record) int { return cmp.Compare(a.Index, b.Index) })
	return all, nil
}

// host runs programs in the node, as the shim does.
type host struct{ node *netns.NS }

func (h host) Exec(ctx context.Context, p driver.Program) ([]byte, error) {
	path := p.Name
	for _, dir := range p.Dirs {
		if _, err := os.Stat(filepath.Join(dir, p.Name)); err == nil {
			path = filepath.Join(dir, p.Name)
			break
		}
	}
	if path == p.Name {
		path = filepath.Join(toolDir(), p.Name)
		if _, err := os.Stat(path); err != nil {
			path = p.Name
		}
	}
	cmd := exec.CommandContext(ctx, path, p.Args...)
	cmd.Stdin, cmd.Env = bytes.NewReader(p.Stdin), append([]string{searchPath()}, p.Env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var out []byte
	err := h.node.Do(func() (err error) {
		out, err = cmd.Output()
		return err
	})
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return out, &driver.ExitError{Program: p.Name, Code: exit.ExitCode(), Stdout: out, Stderr: stderr.Bytes()}
	case err != nil:
		return out, &driverexec.NotRunError{Err: err}
	}
	return out, nil
}

// reference are the reference plugins, called as a runtime calls them.
type reference struct {
	w       *world
	dir     string
	plugins []map[string]any
}

func newReference(t *testing.T, w *world, dir string) *reference {
	t.Helper()
	var list struct{ Plugins []map[string]any }
	try(t, json.Unmarshal(w.conf(), &list))
	return &reference{w: w, dir: dir, plugins: list.Plugins}
}

func (r *reference) add(ctx context.Context) ([]byte, error) {
	var result []byte
	for i := range r.plugins {
		out, err := r.run(ctx, "ADD", i, result)
		if err != nil {
			return nil, errors.Join(err, r.clean(ctx))
		}
		result = out
	}
	return result, nil
}

// clean asks every plugin to DEL what an ADD left that did not come to its
// end, also those behind one that cannot.
func (r *reference) clean(ctx context.Context) error {
	var errs []error
	for i := len(r.plugins) - 1; i >= 0; i-- {
		_, err := r.run(ctx, "DEL", i, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *reference) check(ctx context.Context, result []byte) error {
	for i := range r.plugins {
		if _, err := r.run(ctx, "CHECK", i, result); err != nil {
			return err
		}
	}
	return nil
}

func (r *reference) del(ctx context.Context, result []byte) error {
	for i := len(r.plugins) - 1; i >= 0; i-- {
		if _, err := r.run(ctx, "DEL", i, result); err != nil {
			return err
		}
	}
	return nil
}

// run calls the i-th plugin (CNI specification 1.1, section 3).
func (r *reference) run(ctx context.Context, verb string, i int, prev []byte) ([]byte, error) {
	conf := map[string]any{"name": networkName, "cniVersion": r.w.c.version()}
	for k, v := range r.plugins[i] {
		conf[k] = v
	}
	if prev != nil {
		conf["prevResult"] = json.RawMessage(prev)
	}
	declared, _ := conf["capabilities"].(map[string]any)
	args := map[string]any{}
	for k, v := range r.w.c.runtime() {
		if declared[k] == true {
			args[k] = v
		}
	}
	if len(args) > 0 {
		conf["runtimeConfig"] = args
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	name := conf["type"].(string)
	cmd := exec.CommandContext(ctx, filepath.Join(r.dir, name))
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + containerID, "CNI_IFNAME=" + r.w.c.name(),
		"CNI_NETNS=" + r.w.podPath, "CNI_ARGS=" + r.w.c.args, "CNI_PATH=" + r.dir, searchPath(),
	}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := run(r.w.node, cmd)
	if err != nil {
		return nil, fmt.Errorf("reference: %s: %w", verb, err)
	}
	return out, nil
}

// searchPath is where both sides find iptables.
func searchPath() string {
	return "PATH=" + strings.TrimPrefix(toolDir()+":/usr/sbin:/usr/bin:/sbin:/bin", ":")
}

// toolDir holds the iptables that this kernel serves under their usual names,
// where those are not what the machine calls so.
func toolDir() string {
	if !inGuest() {
		return ""
	}
	return legacyTools()
}

var legacyTools = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "braid-differential")
	if err != nil {
		panic(err)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if err := os.Symlink("/usr/sbin/"+family+"-legacy"+suffix, filepath.Join(dir, family+suffix)); err != nil {
				panic(err)
			}
		}
	}
	return dir
})

// inVersion is a result in the version of the specification that the case is
// written for, whichever it is in.
func inVersion(t *testing.T, raw []byte, version string) []byte {
	t.Helper()
	var head types.PluginConf
	try(t, json.Unmarshal(raw, &head))
	if head.CNIVersion == version {
		return raw
	}
	res := new(current.Result)
	try(t, json.Unmarshal(raw, res))
	return must(json.Marshal(must(res.GetAsVersion(version))(t)))(t)
}

// latest is a result as records have it.
func latest(t *testing.T, raw []byte) []byte {
	t.Helper()
	res := must(create(raw))(t)
	return must(json.Marshal(res))(t)
}
