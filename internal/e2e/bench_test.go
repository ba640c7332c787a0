package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/prometheus/procfs"
	"golang.org/x/sync/errgroup"

	"braid.dev/braid/internal/netns"
)

var (
	rounds = flag.Int("rounds", 10, "how often BenchmarkPods goes through its sides")
	// only serves to look closer at one side while something is made faster.
	only = flag.String("only", "", "measure the sides whose names match this expression, and nothing else")
)

const (
	// parallel is how many pods a kubelet may well start at once.
	parallel = 16
	// alone and together are how many pods each side gets at once, one after the
	// other and parallel at a time.
	alone, together = 8, 32
	// turns is how often in each round pods come one after the other. More at once
	// would cost more each: a bridge tells all of its ports of a new one.
	turns = 3
	// starts is how often the shim is started alone: its p99 is a goal.
	starts = 500
)

// side is one way to give a pod its networks.
type side struct {
	name     string
	runtime  *runtimeSide
	networks string // the pods' annotation; for Braid only
	// status says that the pods have a network status, of an earlier sandbox.
	status bool
}

// BenchmarkPods measures what a runtime waits for, with Braid and with the
// reference plugins called directly, on one machine in one run. The sides take
// turns, so that whatever else the machine does meets all of them. It reports
// through benchmarks of its own, in the form that internal/bench reads.
func BenchmarkPods(b *testing.B) {
	w := newWorld(b)
	stolen := stealing(b)
	samples := w.measure(b)
	for _, s := range w.sides {
		for _, v := range []string{"ADD", "DEL"} {
			samples[sampleKey{s.name, v, 1}].report(b, s.name+"/"+v+"/1")
			samples[sampleKey{s.name, v, parallel}].report(b, s.name+"/"+v+"/"+strconv.Itoa(parallel))
		}
		if w.tellsLater(s) {
			samples[sampleKey{s.name, "status", 1}].report(b, s.name+"/status/1")
		}
	}
	if *only == "" {
		w.reportStatusWrite(b)
		w.reportShim(b)
	}
	b.Run("machine/stolen", func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(stolen(b), "%")
	})
	if *only == "" {
		w.reportDaemon(b)
	}
}

// stealing begins to watch how much of the processors' time the machine's own
// host gives to others, and returns what tells it in percent.
func stealing(b *testing.B) func(*testing.B) float64 {
	read := func(b *testing.B) (stolen, all float64) {
		fs, err := procfs.NewDefaultFS()
		must(b, err)
		stat, err := fs.Stat()
		must(b, err)
		c := stat.CPUTotal // guests are counted as users
		return c.Steal, c.User + c.Nice + c.System + c.Idle + c.Iowait + c.IRQ + c.SoftIRQ + c.Steal
	}
	stolen, all := read(b)
	return func(b *testing.B) float64 {
		stolenNow, allNow := read(b)
		return 100 * (stolenNow - stolen) / (allNow - all)
	}
}

// sample is the times of one verb.
type sample struct {
	each []time.Duration
	// rates are pods per second, one for each round.
	rates []float64
}

type sampleKey struct {
	side, verb string
	parallel   int
}

type samples map[sampleKey]*sample

func (all samples) add(k sampleKey, rate float64, each ...time.Duration) {
	if all[k] == nil {
		all[k] = &sample{}
	}
	all[k].each = append(all[k].each, each...)
	all[k].rates = append(all[k].rates, rate)
}

func (s *sample) report(b *testing.B, name string) {
	b.Run(name, func(b *testing.B) {
		slices.Sort(s.each)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(milliseconds(quantile(s.each, 0.5)), "p50-ms")
		b.ReportMetric(milliseconds(medianError(s.each)), "p50-error-ms")
		b.ReportMetric(milliseconds(quantile(s.each, 0.99)), "p99-ms")
		b.ReportMetric(median(s.rates), "pods/s")
	})
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// medianError is how far the median of so few may be from that of all, in two of
// three cases: half of what the middle ones span, as many to either side as a
// fair coin deviates from its half. It is more when a machine has good and bad
// seconds.
func medianError(sorted []time.Duration) time.Duration {
	n := float64(len(sorted))
	aside := math.Sqrt(n) / 2 / n
	return (quantile(sorted, 0.5+aside) - quantile(sorted, 0.5-aside)) / 2
}

func median[T cmp.Ordered](all []T) T {
	slices.Sort(all)
	return all[len(all)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// world is the host with the networks and pods of the benchmark. Another one has
// a braidd that waits for the network status.
type world struct {
	*host
	waiting *host
	sides   []side
	boxes   []*box
	uids    map[string]string
	ids     atomic.Int64
}

// box is a place for a sandbox: a namespace that one pod after the other uses.
type box struct{ path string }

// newWorld declares the networks and pods and restarts braidd with the default
// network of the benchmark.
func newWorld(b *testing.B) *world {
	w := &world{host: shared, uids: map[string]string{}}
	w.programs(b)
	w.keepInMemory(b, "addresses")
	w.write(b, "conf/05-bench.conflist", w.benchConf())
	w.write(b, "braidd.yaml", "pluginTimeout: 30s\n")
	w.restartFor(b)
	w.waiting = w.waitingHost(b)
	manifest := append(w.definitions("bench", 4), w.foreign())
	manifest = append(manifest, w.waiting.definitions("waiting", 1)...)
	braid, waiting := string(w.conf(b)), string(w.waiting.conf(b))
	w.sides = []side{
		{name: "direct", runtime: w.runtime(b, w.host, w.conflist("direct-net", "braiddirect0", "10.80.0.0/22", "bridge"))},
		{name: "direct-alone", runtime: w.runtime(b, w.host, without(w.conflist("foreign-net", "braiddirect1", "10.81.0.0/22", "foreign"), "portmap"))},
		{name: "default", runtime: w.runtime(b, w.host, braid)},
		{name: "native1", runtime: w.runtime(b, w.host, braid), networks: "bench1"},
		{name: "native4", runtime: w.runtime(b, w.host, braid), networks: "bench1,bench2,bench3,bench4"},
		{name: "executed1", runtime: w.runtime(b, w.host, braid), networks: "foreign"},
		{name: "default-waits", runtime: w.runtime(b, w.waiting, waiting), status: true},
		{name: "native1-waits", runtime: w.runtime(b, w.waiting, waiting), networks: "waiting1"},
	}
	if *only != "" {
		match := regexp.MustCompile(*only)
		w.sides = slices.DeleteFunc(w.sides, func(s side) bool { return !match.MatchString(s.name) })
	}
	for _, s := range w.sides {
		for i := range together {
			manifest = append(manifest, s.pod(i))
		}
	}
	w.declare(b, manifest)
	w.learnPods(b)
	w.makeBoxes(b, together)
	return w
}

// programs puts the reference plugins and the shim into a directory of their
// own. "foreign" is a type that Braid has no driver for.
func (w *world) programs(b *testing.B) {
	if err := os.MkdirAll(w.path("bench-bin"), 0o755); err != nil {
		b.Fatal(err)
	}
	for name, target := range map[string]string{
		"braid-cni": w.path("bin/braid-cni"), "bridge": w.lab.Program("bridge"), "foreign": w.lab.Program("bridge"),
		"host-local": w.lab.Program("host-local"), "portmap": w.lab.Program("portmap"),
	} {
		if err := os.Symlink(target, w.path("bench-bin/"+name)); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() { _ = os.RemoveAll(w.path("bench-bin")) })
}

// keepInMemory has a directory of the host, still empty, in a file system in
// memory. ext4 without a journal, as on the machine that this was written on,
// looks at each recently deleted inode before it makes a file. All sides make
// and delete one for each address, thousands in a run, so that each would pay
// for those before it: 0.3 to 0.7 ms for a file.
func (h *host) keepInMemory(b *testing.B, name string) {
	dir, err := os.MkdirTemp("/dev/shm", "braid-e2e-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Remove(h.path(name)); err != nil {
		b.Fatal(err)
	}
	if err := os.Symlink(dir, h.path(name)); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		err := os.Remove(h.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			return // with the host
		}
		if err = errors.Join(err, os.Mkdir(h.path(name), 0o755)); err != nil {
			b.Error(err)
		}
	})
}

// waitingHost is a host like the other, but for one setting.
func (w *world) waitingHost(b *testing.B) *host {
	h, err := w.cluster.newHost(b.Context(), "", func(h *host) {
		h.keepInMemory(b, "addresses")
		for name, content := range map[string]string{
			"braidd.yaml": "pluginTimeout: 30s\nwaitForNetworkStatus: true\n", "conf/05-bench.conflist": h.benchConf(),
		} {
			if err := os.WriteFile(h.path(name), []byte(content), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Cleanup(func() {
		if err := h.close(); err != nil {
			b.Error(err)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// benchConf is the default network of the benchmark.
func (h *host) benchConf() string {
	return h.conflist("bench-net", "braidbench0", "10.82.0.0/22", "bridge")
}

// conflist is a node's usual network: a bridge with addresses of its own, and
// port mappings for the pods that ask for some.
func (h *host) conflist(name, bridge, subnet, plugin string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":%q,"bridge":%q,"isDefaultGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"subnet":%q}},{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		name, plugin, bridge, h.path("addresses"), subnet)
}

func without(conflist, plugin string) string {
	return strings.Replace(conflist, `,{"type":"`+plugin+`","capabilities":{"portMappings":true}}`, "", 1)
}

func (w *world) write(b *testing.B, name, content string) {
	before, err := os.ReadFile(w.path(name))
	existed := err == nil
	if err := os.WriteFile(w.path(name), []byte(content), 0o644); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		err := os.Remove(w.path(name))
		if existed {
			err = os.WriteFile(w.path(name), before, 0o644)
		}
		if err != nil {
			b.Error(err)
		}
	})
}

// conf is the conflist that Braid wrote for the runtime.
func (h *host) conf(b *testing.B) []byte {
	raw, err := os.ReadFile(h.path("conf/00-braid.conflist"))
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

func (w *world) restartFor(b *testing.B) {
	if err := w.kill(); err != nil {
		b.Fatal(err)
	}
	if err := w.start(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// definitions are n networks like the default one.
func (h *host) definitions(name string, n int) []any {
	var list []any
	for i := 1; i <= n; i++ {
		list = append(list, definitionManifest(name+strconv.Itoa(i), fmt.Sprintf(`{"cniVersion":"1.0.0","name":"%s%d","type":"bridge","bridge":"braidbench%d",
			"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.%d.0.0/22"}}`, name, i, i, h.path("addresses"), 82+i)))
	}
	return list
}

// foreign is the network whose plugin is executed.
func (w *world) foreign() any {
	return definitionManifest("foreign", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"foreign","type":"foreign","bridge":"braidbench9",
		"ipam":{"type":"host-local","dataDir":%q,"subnet":"10.91.0.0/22"}}`, w.path("addresses")))
}

func definitionManifest(name, config string) any {
	return map[string]any{"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name, "namespace": "default"}, "spec": map[string]any{"config": config}}
}

// pod is the manifest of one of the side's pods.
func (s side) pod(i int) any {
	annotations := map[string]string{}
	if s.status {
		annotations[statusKey] = "[]"
	}
	if s.networks != "" {
		annotations["k8s.v1.cni.cncf.io/networks"] = s.networks
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": podName(s, i), "namespace": "default", "labels": map[string]string{"bench": "pods", "side": s.name}, "annotations": annotations},
		"spec": map[string]any{"nodeName": s.runtime.at.node, "tolerations": []any{map[string]string{"operator": "Exists"}},
			"containers": []any{map[string]string{"name": "none", "image": "none"}}},
	}
}

func podName(s side, i int) string { return fmt.Sprintf("%s-%d", s.name, i) }

func (w *world) declare(b *testing.B, items []any) {
	list, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.lab.KubectlInput(b.Context(), strings.NewReader(string(list)), "create", "-f", "-"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if _, err := w.lab.KubectlInput(context.WithoutCancel(b.Context()), strings.NewReader(string(list)),
			"delete", "--force", "--grace-period=0", "--wait=false", "-f", "-"); err != nil {
			b.Error(err)
		}
	})
}

func (w *world) learnPods(b *testing.B) {
	out, err := w.lab.Kubectl(b.Context(), "get", "pods", "-l", "bench=pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}`)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(out) {
		name, uid, _ := strings.Cut(strings.TrimSpace(line), " ")
		w.uids[name] = uid
	}
}

func (w *world) makeBoxes(b *testing.B, n int) {
	for len(w.boxes) < n {
		name := "braid-bench-" + strconv.Itoa(len(w.boxes))
		ns, err := netns.New(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := netns.Delete(name); err != nil {
				b.Error(err)
			}
		})
		if err := ns.Close(); err != nil {
			b.Fatal(err)
		}
		w.boxes = append(w.boxes, &box{netns.Path(name)})
	}
}

// runtimeSide calls plugins as a container runtime does, with libcni.
type runtimeSide struct {
	at   *host
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func (w *world) runtime(b *testing.B, at *host, conflist string) *runtimeSide {
	list, err := libcni.NetworkConfFromBytes([]byte(conflist))
	if err != nil {
		b.Fatal(err)
	}
	return &runtimeSide{at, libcni.NewCNIConfigWithCacheDir([]string{w.path("bench-bin")}, b.TempDir(), nil), list}
}

// request is one sandbox of a pod.
func (w *world) request(s side, i int) *libcni.RuntimeConf {
	name := podName(s, i)
	id := fmt.Sprintf("%064x", w.ids.Add(1))
	return &libcni.RuntimeConf{
		ContainerID: id, NetNS: w.boxes[i].path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name},
			{"K8S_POD_INFRA_CONTAINER_ID", id}, {"K8S_POD_UID", w.uids[name]}},
	}
}

// call runs one verb in the namespace of the host, and says how long it took.
func (r *runtimeSide) call(ctx context.Context, verb string, conf *libcni.RuntimeConf) (took time.Duration, err error) {
	err = r.at.ns.Do(func() error {
		start := time.Now()
		defer func() { took = time.Since(start) }()
		if verb == "DEL" {
			return r.cni.DelNetworkList(ctx, r.list, conf)
		}
		_, err := r.cni.AddNetworkList(ctx, r.list, conf)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", verb, err)
	}
	return took, err
}

// measure goes through the sides again and again. The first round is to warm
// up: it makes the bridges.
func (w *world) measure(b *testing.B) samples {
	all := samples{}
	for round := range *rounds + 1 {
		into := all
		if round == 0 {
			into = samples{}
		}
		for _, s := range w.sides {
			for range turns {
				w.turn(b, s, 1, alone, into)
			}
			w.turn(b, s, parallel, together, into)
		}
	}
	return all
}

// turn has pods of a side come and go, n at a time. Statuses that no ADD waits
// for are waited for before the pods go: they are a part of what the pods cost.
func (w *world) turn(b *testing.B, s side, n, pods int, all samples) {
	confs := make([]*libcni.RuntimeConf, pods)
	for i := range confs {
		confs[i] = w.request(s, i)
	}
	var before map[string]string
	if w.tellsLater(s) {
		before = w.statuses(b, s)
	}
	rest(b)
	for _, verb := range []string{"ADD", "DEL"} {
		runtime.GC() // not in the middle of a measurement
		each, rate := s.runtime.batch(b, verb, confs, n)
		all.add(sampleKey{s.name, verb, n}, rate, each...)
		if verb == "ADD" && w.tellsLater(s) {
			took := w.awaitStatuses(b, s, before, pods)
			all.add(sampleKey{s.name, "status", n}, 1/took.Seconds(), took)
		}
	}
}

// rest lets what the side before left to be done be done, such as links that the
// kernel frees.
func rest(b *testing.B) {
	select {
	case <-time.After(200 * time.Millisecond):
	case <-b.Context().Done():
	}
}

// tellsLater reports whether the side's pods get a status that no ADD waits for.
func (w *world) tellsLater(s side) bool { return s.networks != "" && s.runtime.at != w.waiting }

// statuses are the network statuses of the side's pods.
func (w *world) statuses(b *testing.B, s side) map[string]string {
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string
				Annotations map[string]string
			}
		}
	}
	if err := w.api.get(b.Context(), "/api/v1/namespaces/default/pods?labelSelector=side%3D"+s.name, &list); err != nil {
		b.Fatal(err)
	}
	statuses := map[string]string{}
	for _, p := range list.Items {
		statuses[p.Metadata.Name] = p.Metadata.Annotations[statusKey]
	}
	return statuses
}

// awaitStatuses waits until that many of the side's pods have another status
// than before, and says how long it took. Each sandbox has addresses of its own.
func (w *world) awaitStatuses(b *testing.B, s side, before map[string]string, pods int) time.Duration {
	start := time.Now()
	err := within(b.Context(), time.Minute, "network statuses", func() error {
		written := 0
		for name, text := range w.statuses(b, s) {
			if text != before[name] {
				written++
			}
		}
		if written < pods {
			return fmt.Errorf("%d of %d are written", written, pods)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// batch calls one verb for every pod, n at a time.
func (r *runtimeSide) batch(b *testing.B, verb string, confs []*libcni.RuntimeConf, n int) (each []time.Duration, rate float64) {
	each = make([]time.Duration, len(confs))
	var group errgroup.Group
	group.SetLimit(n)
	start := time.Now()
	for i, conf := range confs {
		group.Go(func() (err error) {
			each[i], err = r.call(b.Context(), verb, conf)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return each, float64(len(confs)) / time.Since(start).Seconds()
}

// reportStatusWrite measures what the API server takes for a pod's network
// status when nothing else is done: whoever waits for it waits that long.
func (w *world) reportStatusWrite(b *testing.B) {
	name := podName(w.sides[len(w.sides)-1], 0)
	var s sample
	for i := range 200 {
		start := time.Now()
		err := w.api.patch(b.Context(), "/api/v1/namespaces/default/pods/"+name+"/status",
			object{"metadata": object{"annotations": object{statusKey: fmt.Sprintf("[%d]", i)}}})
		if err != nil {
			b.Fatal(err)
		}
		s.each = append(s.each, time.Since(start))
		s.rates = append(s.rates, 1/time.Since(start).Seconds())
	}
	s.report(b, "api/status/1")
}

// reportShim measures what each start of the shim costs.
func (w *world) reportShim(b *testing.B) {
	config := w.braidConf(b)
	for name, env := range map[string][]string{
		"VERSION": {"CNI_COMMAND=VERSION"},
		"STATUS":  {"CNI_COMMAND=STATUS", "CNI_PATH=" + w.path("bench-bin")},
	} {
		var s sample
		for range starts {
			start := time.Now()
			if out, err := w.shim(b, env, config); err != nil {
				b.Fatalf("%s: %v: %s", name, err, out)
			}
			s.each = append(s.each, time.Since(start))
			s.rates = append(s.rates, 1/time.Since(start).Seconds())
		}
		s.report(b, "shim/"+name+"/1")
	}
	b.Run("shim/memory", func(b *testing.B) {
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(w.shimRSS(b), "MB")
	})
}

// braidConf is the configuration that a runtime gives the shim.
func (w *world) braidConf(b *testing.B) string {
	config, err := pluginConf(w.conf(b))
	if err != nil {
		b.Fatal(err)
	}
	return string(config)
}

func (w *world) shim(b *testing.B, env []string, stdin string) ([]byte, error) {
	cmd := exec.CommandContext(b.Context(), w.path("bench-bin/braid-cni"))
	cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
	return cmd.Output()
}

// shimRSS is the most memory that the shim used in an ADD, in MB of 10^6 bytes.
// A parent as large as this one would count as the child's, which begins as a
// part of it; so a small one starts it.
func (w *world) shimRSS(b *testing.B) float64 {
	side := w.sides[slices.IndexFunc(w.sides, func(s side) bool { return s.name == "native1" })]
	conf := w.request(side, 0)
	args := make([]string, len(conf.Args))
	for i, a := range conf.Args {
		args[i] = a[0] + "=" + a[1]
	}
	env := []string{"CNI_CONTAINERID=" + conf.ContainerID, "CNI_NETNS=" + conf.NetNS, "CNI_IFNAME=" + conf.IfName,
		"CNI_ARGS=" + strings.Join(args, ";"), "CNI_PATH=" + w.path("bench-bin")}
	most := 0.0
	for _, verb := range []string{"ADD", "DEL"} {
		cmd := exec.CommandContext(b.Context(), "/usr/bin/time", "-f", "memory %M", w.path("bench-bin/braid-cni"))
		cmd.Env, cmd.Stdin = append([]string{"CNI_COMMAND=" + verb}, env...), strings.NewReader(w.braidConf(b))
		var said strings.Builder
		cmd.Stderr = &said
		if err := w.ns.Do(cmd.Run); err != nil {
			b.Fatalf("%s: %v: %s", verb, err, said.String())
		}
		m := regexp.MustCompile(`memory (\d+)`).FindStringSubmatch(said.String())
		if m == nil {
			b.Fatalf("time says %s", said.String())
		}
		kilobytes, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		most = max(most, kilobytes*1024/1e6)
	}
	return most
}

// reportDaemon measures braidd's memory on a full node in a cluster of many
// networks.
func (w *world) reportDaemon(b *testing.B) {
	w.restartFor(b)
	b.Run("daemon/idle", w.daemonMemory)
	const pods, networks = 110, 500
	var manifest []any
	for i := range networks {
		manifest = append(manifest, definitionManifest(fmt.Sprintf("many%d", i), fmt.Sprintf(`{"cniVersion":"1.0.0","name":"many%d","plugins":[
			{"type":"bridge","bridge":"braidbench1","vlan":%d,"ipam":{"type":"host-local","subnet":"10.83.0.0/22","routes":[{"dst":"10.0.0.0/8"}]}},
			{"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}}]}`, i, i+1)))
	}
	full := side{name: "full", runtime: w.runtime(b, w.host, string(w.conf(b))), networks: "bench1"}
	for i := range pods {
		manifest = append(manifest, full.pod(i))
	}
	w.declare(b, manifest)
	w.learnPods(b)
	w.makeBoxes(b, pods)
	confs := make([]*libcni.RuntimeConf, pods)
	for i := range confs {
		confs[i] = w.request(full, i)
	}
	full.runtime.batch(b, "ADD", confs, parallel)
	b.Run("daemon/busy", w.daemonMemory)
	// braidd gives back once a minute what it did not need.
	select {
	case <-time.After(70 * time.Second):
	case <-b.Context().Done():
	}
	b.Run("daemon/full", w.daemonMemory)
	full.runtime.batch(b, "DEL", confs, parallel)
	b.Run("daemon/after", w.daemonMemory)
}

// daemonMemory reports what braidd occupies now and at most since its start, in
// MB of 10^6 bytes.
func (w *world) daemonMemory(b *testing.B) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(w.braidd.Process.Pid), "status"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	for unit, key := range map[string]string{"MB": "VmRSS", "peak-MB": "VmHWM", "own-MB": "RssAnon"} {
		m := regexp.MustCompile(key + `:\s+(\d+) kB`).FindStringSubmatch(string(text))
		if m == nil {
			b.Fatalf("no %s in %s", key, text)
		}
		kilobytes, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(kilobytes*1024/1e6, unit)
	}
}
