package hostlocal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/ipam/hostlocal"
)

// node is a data dir and the dialect that works on it.
type node struct {
	rapid.TB
	dir    string
	plugin ipam.Plugin
}

func newNode(t testing.TB) *node {
	dir := t.TempDir()
	return &node{TB: t, dir: dir, plugin: hostlocal.New(hostlocal.Config{DataDir: dir})}
}

// conf completes a configuration, or only its ipam, with a name and a version.
func conf(t rapid.TB, text string) []byte {
	t.Helper()
	m := map[string]any{"name": "vlan2001", "cniVersion": "1.0.0", "type": "bridge"}
	var in map[string]any
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	if _, whole := in["ipam"]; whole {
		maps.Copy(m, in)
	} else {
		m["ipam"] = in
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (n *node) request(id, text, args string) ipam.Request {
	return ipam.Request{ContainerID: id, IfName: "net1", Args: args, Conf: conf(n, text)}
}

// add returns the addresses that id gets, or the error as text.
func (n *node) add(id, text, args string) string {
	n.Helper()
	res, err := n.plugin.Add(context.Background(), n.request(id, text, args))
	if err != nil {
		return err.Error()
	}
	return addresses(res)
}

func addresses(res *current.Result) string {
	var all []string
	for _, ip := range res.IPs {
		all = append(all, ip.Address.String())
	}
	return strings.Join(all, " ")
}

func (n *node) del(id, text string) {
	n.Helper()
	if err := n.plugin.Del(context.Background(), n.request(id, text, "")); err != nil {
		n.Fatalf("Del %s: %v", id, err)
	}
}

// files returns what the directory of the network holds, by name.
func (n *node) files() map[string]string {
	n.Helper()
	return readAll(n, filepath.Join(n.dir, "vlan2001"))
}

func readAll(t rapid.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}

func (n *node) write(name, data string) {
	n.Helper()
	dir := filepath.Join(n.dir, "vlan2001")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
		n.Fatal(err)
	}
}

func expect(t rapid.TB, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func expectPart(t rapid.TB, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("got %s\nwant it to say %q", got, want)
	}
}

const small = `{"subnet":"10.0.0.0/29"}` // .2 to .6

func TestFilesAreTheReferences(t *testing.T) {
	n := newNode(t)
	expect(t, n.add("c1", `{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"FD00:0::/64"}]]}`, ""), "10.0.0.2/24 fd00::2/64")
	want := map[string]string{
		"10.0.0.2":           "c1\r\nnet1",
		"fd00::2":            "c1\r\nnet1",
		"last_reserved_ip.0": "10.0.0.2",
		"last_reserved_ip.1": "fd00::2",
		"lock":               "",
	}
	if diff := cmp.Diff(want, n.files()); diff != "" {
		t.Error(diff)
	}
	n.del("c1", small)
	delete(want, "10.0.0.2")
	delete(want, "fd00::2")
	if diff := cmp.Diff(want, n.files()); diff != "" {
		t.Error(diff)
	}
}

func TestResult(t *testing.T) {
	n := newNode(t)
	resolv := filepath.Join(n.dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("# a comment\n;another\nnameserver 192.0.2.3\n  nameserver 192.0.2.4 \ndomain example.com\nsearch a b\noptions ndots:2\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := n.plugin.Add(t.Context(), n.request("c1", `{"ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.0.254"}],[{"subnet":"fd00::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"192.168.0.0/16","gw":"10.0.0.9","mtu":1400}],"resolvConf":"`+resolv+`"}`, ""))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, string(data), `{"cniVersion":"1.1.0","dns":{"domain":"example.com","nameservers":["192.0.2.3","192.0.2.4"],"options":["ndots:2"],"search":["a","b"]},`+
		`"ips":[{"address":"10.0.0.1/24","gateway":"10.0.0.254"},{"address":"fd00::2/64","gateway":"fd00::1"}],`+
		`"routes":[{"dst":"0.0.0.0/0"},{"dst":"192.168.0.0/16","gw":"10.0.0.9","mtu":1400}]}`)
}

func TestResolvConfThatIsNoFileIsRefusedAndReservesNothing(t *testing.T) {
	n := newNode(t)
	pipe := filepath.Join(n.dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(n.dir, "missing"), n.dir, "/dev/zero", pipe} {
		expectPart(t, n.add("c1", `{"subnet":"10.0.0.0/29","resolvConf":"`+path+`"}`, ""), "resolvConf: ")
	}
	if files := n.files(); len(files) > 0 {
		t.Error(files)
	}
}

func TestAddressesGoRound(t *testing.T) {
	n := newNode(t)
	for i := range 12 {
		id := fmt.Sprint("c", i)
		expect(t, n.add(id, small, ""), fmt.Sprintf("10.0.0.%d/29", 2+i%5))
		n.del(id, small)
	}
}

func TestRequestedAddresses(t *testing.T) {
	const two = `{"ranges":[[{"subnet":"10.0.0.0/29"},{"subnet":"10.0.1.0/29","gateway":"10.0.1.6"}],[{"subnet":"fd00::/64"}]]}`
	n := newNode(t)
	expect(t, n.add("c1", two, "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.1.1"), "10.0.1.1/29 fd00::2/64")
	expect(t, n.add("c2", two, "IP=fd00::aa/64"), "10.0.1.2/29 fd00::aa/64")
	expect(t, n.add("c3", `{"args":{"cni":{"ips":["10.0.0.5/29"]}},"runtimeConfig":{"ips":["10.0.0.5","fd00::5"]},"ipam":`+two+`}`, "IP=10.0.0.5"), "10.0.0.5/29 fd00::5/64")

	before := n.files()
	for args, want := range map[string]string{
		"IP=10.0.1.1":          "requested address 10.0.1.1 is held by container c1 (net1)",
		"IP=10.0.1.6":          "is the gateway of 10.0.1.0/29",
		"IP=10.0.0.1":          "is the gateway of 10.0.0.0/29",
		"IP=10.0.0.7":          "is in no range of the network (10.0.0.1-10.0.0.6,10.0.1.1-10.0.1.6; fd00::1-fd00::ffff:ffff:ffff:ffff)",
		"IP=10.0.9.9":          "is in no range",
		"IP=nonsense":          `CNI_ARGS: IP: "nonsense" is not an IP address`,
		"IP=10.0.0.3/99":       "neither an IP address nor one in CIDR notation",
		"IP=10.0.0.2,10.0.0.3": "is not an IP address",
	} {
		expectPart(t, n.add("c9", two, args), want)
	}
	expectPart(t, n.add("c9", `{"runtimeConfig":{"ips":["10.0.0.3","10.0.1.3"]},"ipam":`+two+`}`, ""), "requested addresses 10.0.0.3 and 10.0.1.3 are both in range set 0")
	expectPart(t, n.add("c9", `{"args":{"cni":{"ips":["10.0.0.3",null]}},"ipam":`+two+`}`, ""), "args.cni.ips[1]")
	if diff := cmp.Diff(before, n.files()); diff != "" {
		t.Errorf("a refused request changed files: %s", diff)
	}
}

func TestRefusals(t *testing.T) {
	n := newNode(t)
	for text, want := range map[string]uint{
		`{"ipam":null}`:                           types.ErrInvalidNetworkConfig,
		`{"subnet":"10.0.0.0/31"}`:                types.ErrInvalidNetworkConfig,
		`{"subnet":5}`:                            types.ErrDecodingFailure,
		`{"name":"..","ipam":` + small + `}`:      types.ErrInvalidNetworkConfig,
		`{"cniVersion":"3","ipam":` + small + `}`: types.ErrIncompatibleCNIVersion,
		`{"cniVersion":"0.2.0","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.1.0.0/24"}]]}}`: types.ErrInvalidNetworkConfig,
		`{"subnet":"10.0.0.0/24","dataDir":"relative"}`:                                                    types.ErrInvalidNetworkConfig,
		`{"subnet":"10.0.0.0/24","routes":[{"gw":"10.0.0.1"}]}`:                                            types.ErrInvalidNetworkConfig,
	} {
		_, err := n.plugin.Add(t.Context(), n.request("c1", text, ""))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != want {
			t.Errorf("%s: %v, want code %d", text, err, want)
		}
	}
	if entries, _ := os.ReadDir(n.dir); len(entries) > 0 {
		t.Error("a refused request left", entries)
	}
}

func TestExhaustionSaysSoAndGivesBackTheOtherFamily(t *testing.T) {
	const two = `{"ranges":[[{"subnet":"fd00::/64"}],[{"subnet":"10.0.0.0/30"}]]}`
	n := newNode(t)
	expect(t, n.add("c1", two, ""), "fd00::2/64 10.0.0.2/30")
	_, err := n.plugin.Add(t.Context(), n.request("c2", two, ""))
	var e *types.Error
	if !errors.As(err, &e) || e.Code != types.ErrTryAgainLater {
		t.Errorf("%v, want code 11", err)
	}
	expectPart(t, fmt.Sprint(err), "no free address in range set 1 (10.0.0.1-10.0.0.2)")
	for name, data := range n.files() {
		if strings.HasPrefix(data, "c2") {
			t.Errorf("%s is left", name)
		}
	}
	n.del("c1", two)
	expectPart(t, n.add("c2", two, ""), " 10.0.0.2/30")
}

// The runtime tries again after a crash with the same container.
func TestAddAgainKeepsTheAddresses(t *testing.T) {
	const two = `{"ranges":[[{"subnet":"10.0.0.0/29"}],[{"subnet":"fd00::/64"}]]}`
	n := newNode(t)
	n.add("c0", two, "")
	n.write("10.0.0.5", "c1\r\nnet1") // the crash left one of two
	expect(t, n.add("c1", two, ""), "10.0.0.5/29 fd00::3/64")
	expect(t, n.add("c1", two, ""), "10.0.0.5/29 fd00::3/64")
	expect(t, n.add("c1", two, "IP=10.0.0.5"), "10.0.0.5/29 fd00::3/64")
	// Another request of the same attachment replaces the first.
	expect(t, n.add("c1", two, "IP=10.0.0.6"), "10.0.0.6/29 fd00::3/64")
	if _, still := n.files()["10.0.0.5"]; still {
		t.Error("the replaced address is still recorded")
	}
	// An impossible one leaves nothing.
	expectPart(t, n.add("c1", two, "IP=10.0.0.2"), "held by container c0 (net1)")
	for name, data := range n.files() {
		if strings.HasPrefix(data, "c1") {
			t.Errorf("%s is left", name)
		}
	}
}

func TestInterfacesOfOneContainerAreSeparate(t *testing.T) {
	n := newNode(t)
	r := n.request("c1", small, "")
	for i, want := range []string{"10.0.0.2/29", "10.0.0.3/29"} {
		r.IfName = fmt.Sprint("net", i+1)
		res, err := n.plugin.Add(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, addresses(res), want)
	}
	n.del("c1", small) // net1
	if files := n.files(); files["10.0.0.2"] != "" || files["10.0.0.3"] != "c1\r\nnet2" {
		t.Error(files)
	}
}

// A power failure or a full disk under the reference plugin leaves such files,
// and the reference never uses their addresses again.
func TestTornFilesAreFree(t *testing.T) {
	n := newNode(t)
	for i, data := range []string{"", "\r\n", "\x00\x00\x00\x00", "", "\n"} {
		n.write(fmt.Sprintf("10.0.0.%d", 2+i), data)
	}
	for i := range 5 {
		expect(t, n.add(fmt.Sprint("c", i), small, ""), fmt.Sprintf("10.0.0.%d/29", 2+i))
	}
	expectPart(t, n.add("c6", small, ""), "no free address")
	n.write("10.0.0.6", "")
	expect(t, n.add("c6", small, "IP=10.0.0.6"), "10.0.0.6/29")
	expect(t, n.files()["10.0.0.6"], "c6\r\nnet1")
}

func TestForeignFiles(t *testing.T) {
	n := newNode(t)
	n.write("10.0.0.2", "by hand")
	n.write("README", "c1\r\nnet1")
	n.write("last_reserved_ip.0", "not an address")
	if err := os.Mkdir(filepath.Join(n.dir, "vlan2001", "10.0.0.3"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(n.dir, "vlan2001", "10.0.0.4"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, n.add("c1", small, ""), "10.0.0.5/29")
	expectPart(t, n.add("c2", small, "IP=10.0.0.2"), "held by container by hand")
	expectPart(t, n.add("c2", small, "IP=10.0.0.3"), "held by an unknown holder")
}

// TestPipeHangsNobody: who waits for its other end holds the network's lock.
func TestPipeHangsNobody(t *testing.T) {
	n := newNode(t)
	n.write("10.0.0.2", "by hand")
	if err := unix.Mkfifo(filepath.Join(n.dir, "vlan2001", "last_reserved_ip.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	expectPart(t, n.add("c1", small, ""), "last_reserved_ip.0")
}

func TestDel(t *testing.T) {
	n := newNode(t)
	n.del("c1", small) // no directory
	if files := n.files(); len(files) > 0 {
		t.Error("Del made", files)
	}
	n.add("c1", small, "")
	n.del("unknown", small)
	n.del("c1", `{"subnet":"not any more","ranges":5,"routes":[null]}`)
	n.del("c1", small)
	if files := n.files(); files["10.0.0.2"] != "" {
		t.Error(files)
	}
}

// host-local before v0.8 wrote the container ID alone.
func TestDelAndCheckKnowTheOldFormat(t *testing.T) {
	n := newNode(t)
	n.write("10.0.0.2", " c1\n")
	n.write("10.0.0.3", "c2")
	const prev = `,"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/29"}]}}`
	if err := n.plugin.Check(t.Context(), n.request("c1", `{"ipam":`+small+prev, "")); err != nil {
		t.Error(err)
	}
	expectPart(t, n.add("c3", small, "IP=10.0.0.2"), "held by container c1")
	n.del("c1", small)
	if files := n.files(); files["10.0.0.2"] != "" || files["10.0.0.3"] != "c2" {
		t.Error(files)
	}
}

func TestCheck(t *testing.T) {
	n := newNode(t)
	check := func(id, ips string) string {
		t.Helper()
		return fmt.Sprint(n.plugin.Check(t.Context(), n.request(id, `{"ipam":`+small+`,"prevResult":{"cniVersion":"1.0.0","ips":[`+ips+`]}}`, "")))
	}
	expectPart(t, check("c1", ""), "no address of container c1 (net1) is recorded in "+n.dir)
	n.add("c1", small, "")
	n.add("c2", small, "")
	expect(t, check("c1", `{"address":"10.0.0.2/29"},{"address":"192.0.2.1/24"}`), "<nil>")
	expectPart(t, check("c1", `{"address":"10.0.0.3/29"}`), "address 10.0.0.3 of container c1 (net1) is held by container c2 (net1)")
	expectPart(t, check("c1", `{"address":"10.0.0.4/29"}`), "address 10.0.0.4 of container c1 (net1) is not recorded")
	expectPart(t, fmt.Sprint(n.plugin.Check(t.Context(), n.request("c1", small, ""))), "prevResult is missing")
}

func TestUnusableDataDirIsNamed(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(n.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expectPart(t, n.add("c1", `{"subnet":"10.0.0.0/29","dataDir":"`+file+`"}`, ""), file)
	expectPart(t, fmt.Sprint(n.plugin.Del(t.Context(), n.request("c1", `{"dataDir":"`+file+`"}`, ""))), file)
}

func TestDataDirOfTheConfiguration(t *testing.T) {
	n := newNode(t)
	other := t.TempDir()
	expect(t, n.add("c1", `{"subnet":"10.0.0.0/29","dataDir":"`+other+`"}`, ""), "10.0.0.2/29")
	if _, err := os.Stat(filepath.Join(other, "vlan2001", "10.0.0.2")); err != nil {
		t.Error(err)
	}
}

// What another process did in the meantime must be seen, although the file of
// an address looks as before.
func TestChangesOfOthersAreSeen(t *testing.T) {
	n := newNode(t)
	n.add("aa", small, "")
	n.add("bb", small, "")
	n.write("10.0.0.2", "bb\r\nnet1") // same inode, same size
	n.del("bb", small)
	if files := n.files(); files["10.0.0.2"]+files["10.0.0.3"] != "" {
		t.Error(files)
	}
}

func lockNetwork(t *testing.T, dir string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "vlan2001", "lock"), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

func TestWaitingForTheLockEndsWithTheRequest(t *testing.T) {
	n := newNode(t)
	n.add("c1", small, "")
	before := n.files()
	unlock := lockNetwork(t, n.dir)
	cause := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 3 { // one waits for the file, the others behind it
		wg.Go(func() {
			_, err := n.plugin.Add(ctx, n.request(fmt.Sprint("w", i), small, ""))
			if !errors.Is(err, cause) || !strings.Contains(err.Error(), n.dir) {
				t.Errorf("Add: %v", err)
			}
		})
	}
	wg.Wait()
	if err := n.plugin.Del(ctx, n.request("c1", small, "")); !errors.Is(err, cause) {
		t.Errorf("Del: %v", err)
	}
	if diff := cmp.Diff(before, n.files()); diff != "" {
		t.Error(diff)
	}
	unlock()
	n.del("c1", small)
}

func TestWaitingForTheLockEndsWhenItIsFree(t *testing.T) {
	n := newNode(t)
	n.add("c1", small, "")
	unlock := lockNetwork(t, n.dir)
	got := make(chan string)
	go func() { got <- n.add("c2", small, "") }()
	unlock()
	expect(t, <-got, "10.0.0.3/29")
}

func TestNoAddressTwiceUnderConcurrency(t *testing.T) {
	n := newNode(t)
	const two = `{"ranges":[[{"subnet":"10.0.0.0/26"}],[{"subnet":"fd00::/64"}]]}`
	// Two instances, as two processes have them.
	plugins := []ipam.Plugin{n.plugin, hostlocal.New(hostlocal.Config{DataDir: n.dir})}
	var mu sync.Mutex
	owner := make(map[string]string)
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			for round := range 5 {
				id := fmt.Sprintf("w%d-%d", worker, round)
				res, err := plugins[(worker+round)%2].Add(t.Context(), n.request(id, two, ""))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, a := range strings.Fields(addresses(res)) {
					if owner[a] != "" {
						t.Errorf("%s is given to %s and %s", a, owner[a], id)
					}
					owner[a] = id
				}
				mu.Unlock()
				if round%2 == 0 {
					continue
				}
				mu.Lock()
				for _, a := range strings.Fields(addresses(res)) {
					delete(owner, a)
				}
				mu.Unlock()
				if err := plugins[worker%2].Del(t.Context(), n.request(id, two, "")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var held []string
	for name := range n.files() {
		if strings.ContainsAny(name, ".:") && !strings.HasPrefix(name, "last") {
			held = append(held, name)
		}
	}
	if len(held) != len(owner) || len(held) != 12*3*2 {
		t.Errorf("%d files for %d owned addresses: %v", len(held), len(owner), slices.Sorted(maps.Keys(owner)))
	}
}
