package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/ipam"
	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/rtnl"
	"braid.dev/braid/internal/store"
)

func recordOf(index int, at plan.Attachment) store.Record {
	return store.Record{Sandbox: sandbox("c"), Index: index, Attachment: at, Result: json.RawMessage(`{"cniVersion":"1.1.0"}`)}
}

// names are the places and interfaces of records.
func names(records []store.Record) (list []string) {
	for _, r := range records {
		list = append(list, string(rune('0'+r.Index))+" "+r.Attachment.IfName)
		if !r.Rebuilt {
			list[len(list)-1] += " as it was"
		}
	}
	return list
}

func TestSubstitutesOfLostRecords(t *testing.T) {
	all := planOf(network("eth0", "one"), network("net1", "one"), network("net2", "two"))
	keys := func(indexes ...int) (ks []store.Key) {
		for _, i := range indexes {
			ks = append(ks, store.Key{ContainerID: "c", IfName: "eth0", Index: i})
		}
		return ks
	}
	sees := func(names ...string) *view {
		v := &view{}
		for i, n := range names {
			v.links = append(v.links, rtnl.Link{Index: i + 1, Name: n})
		}
		return v
	}
	for name, c := range map[string]struct {
		plan    plan.Plan
		good    []store.Record
		damaged store.DamagedError
		view    *view
		ending  bool
		want    []string
	}{
		"everything, nothing can be seen": {plan: all, want: []string{"0 eth0", "1 net1", "2 net2"}},
		"everything, asked for since":     {plan: all, view: sees("lo", "eth0", "net1"), want: []string{"0 eth0", "1 net1"}},
		"one of three": {
			plan: all, good: []store.Record{recordOf(0, all.Attachments[0]), recordOf(2, all.Attachments[2])},
			damaged: store.DamagedError{Keys: keys(1)}, want: []string{"1 net1"},
		},
		"removed in the container": {
			plan: all, good: []store.Record{recordOf(0, all.Attachments[0])},
			damaged: store.DamagedError{Keys: keys(1, 2)}, view: sees("eth0", "net2"), want: []string{"1 net1", "2 net2"},
		},
		"no longer asked for": {
			plan: planOf(network("eth0", "one")), good: []store.Record{recordOf(0, all.Attachments[0])},
			damaged: store.DamagedError{Keys: keys(1), Guesses: []store.Record{recordOf(1, network("old", "two"))}},
			view:    sees("eth0", "old"), want: []string{"1 old"},
		},
		"its name is what is damaged, and the pod is not known": {
			plan:    planOf(network("eth0", "one")),
			damaged: store.DamagedError{Keys: keys(0, 1), Guesses: []store.Record{recordOf(0, network("ath0", "one")), recordOf(1, network("jet1", "two"))}},
			view:    sees("eth0", "net1"), want: []string{"0 eth0"},
		},
		"its name is what is damaged": {
			plan: all, good: []store.Record{recordOf(0, all.Attachments[0]), recordOf(2, all.Attachments[2])},
			damaged: store.DamagedError{Keys: keys(1), Guesses: []store.Record{recordOf(1, network("jet1", "one"))}},
			want:    []string{"1 net1"},
		},
		"its name is what is damaged, and it ends": {
			plan: planOf(network("eth0", "one")), ending: true,
			damaged: store.DamagedError{Keys: keys(0), Guesses: []store.Record{recordOf(0, network("eth4", "one"))}},
			want:    []string{"0 eth0", "1 eth4"},
		},
		"no name at all": {
			plan:    planOf(network("eth0", "one")),
			damaged: store.DamagedError{Keys: keys(0, 1, 2), Guesses: []store.Record{recordOf(1, network("", "one")), recordOf(2, network("../net1", "one"))}},
			want:    []string{"0 eth0"},
		},
		"place taken by a later network": {
			plan: all, good: []store.Record{recordOf(1, network("plugged", "one"))},
			damaged: store.DamagedError{Keys: keys(0, 2)}, view: sees("eth0", "net1", "plugged"), want: []string{"0 eth0", "2 net1"},
		},
		"nothing is known": {damaged: store.DamagedError{Keys: keys(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			got := substitutes(Lost{Sandbox: sandbox("c"), Plan: c.plan, Ending: c.ending}, c.good, &c.damaged, c.view)
			if diff := cmp.Diff(c.want, names(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// With any one bit of a record flipped, whatever can still be read of it, a
// sandbox that lives has the attachments that it had, and no other.
func TestFlippedBitOfARecordMakesNoAttachmentUp(t *testing.T) {
	had := planOf(network("eth0", "one"), network("net1", "two+", "program"), network("net2", "two"))
	var all []store.Record
	v := &view{}
	for i, at := range had.Attachments {
		all = append(all, recordOf(i, at))
		v.links = append(v.links, rtnl.Link{Index: i + 1, Name: at.IfName})
	}
	read := 0
	for i, r := range all {
		good := slices.Delete(slices.Clone(all), i, i+1)
		want := []string{fmt.Sprint(i, " ", r.Attachment.IfName)}
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(data) {
			flipped := bytes.Clone(data)
			flipped[bit/8] ^= 1 << (bit % 8)
			damaged := store.DamagedError{Keys: []store.Key{r.Key()}}
			var guess store.Record
			if json.Unmarshal(flipped, &guess) == nil && guess.Key() == r.Key() {
				damaged.Guesses = append(damaged.Guesses, guess)
				read++
			}
			got := substitutes(Lost{Sandbox: sandbox("c"), Plan: had}, good, &damaged, v)
			if diff := cmp.Diff(want, names(got)); diff != "" {
				t.Fatalf("%s: %s", flipped, diff)
			}
		}
	}
	if read == 0 {
		t.Error("no flipped record could be read")
	}
}

func TestRebuiltResultIsWhatTheKernelShows(t *testing.T) {
	v := &view{
		links: []rtnl.Link{{Index: 4, Name: "net1", MTU: 1400, MAC: []byte{2, 0, 0, 0, 0, 7}}},
		addrs: map[int][]rtnl.Addr{4: {{Prefix: netip.MustParsePrefix("10.0.0.7/24")}, {Prefix: netip.MustParsePrefix("fe80::7/64")}}},
		routes: []rtnl.Route{
			{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.1"), Link: 4},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.1"), Link: 9},
		},
		ends: map[int]rtnl.Link{4: {Name: "veth1", MAC: []byte{2, 0, 0, 0, 0, 8}}},
	}
	got, err := v.result(store.Record{Sandbox: sandbox("c"), Attachment: network("net1", "one")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"cniVersion":"1.1.0","interfaces":[{"mac":"02:00:00:00:00:08","name":"veth1"},` +
		`{"mac":"02:00:00:00:00:07","mtu":1400,"name":"net1","sandbox":"/run/netns/c"}],` +
		`"ips":[{"address":"10.0.0.7/24","gateway":"10.0.0.1","interface":1}],"routes":[{"dst":"10.9.0.0/16","gw":"10.0.0.1"}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	remembered := &current.Result{CNIVersion: "1.1.0", Interfaces: []*current.Interface{{Name: "eth0"}}}
	got, err = v.result(store.Record{Sandbox: sandbox("c"), Attachment: network("eth0", "one")}, remembered)
	if err != nil || string(got) != `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}]}` {
		t.Errorf("the runtime's memory became %s, %v", got, err)
	}
}

// damagedStore is a store that cannot read the records of these places, but
// can guess.
type damagedStore struct {
	Store
	places  []int
	guesses []store.Record
}

// lose damages the records of these places, of which guesses is what can be read.
func (m *machine) lose(places []int, guesses ...store.Record) {
	m.Attacher.Store = &damagedStore{m.Attacher.Store, places, guesses}
}

func (d *damagedStore) Sandbox(containerID, ifName string) (good []store.Record, err error) {
	all, err := d.Store.Sandbox(containerID, ifName)
	damaged := &store.DamagedError{}
	for _, r := range all {
		lost := false
		for _, p := range d.places {
			lost = lost || p == r.Index
		}
		if lost {
			damaged.Keys = append(damaged.Keys, r.Key())
			damaged.Reasons = append(damaged.Reasons, "its checksum is wrong")
		} else {
			good = append(good, r)
		}
	}
	if len(damaged.Keys) == 0 {
		return good, err
	}
	damaged.Guesses = d.guesses
	return good, errors.Join(err, damaged)
}

func (d *damagedStore) Rebuild(ctx context.Context, records []store.Record, damaged []store.Key) error {
	d.places = nil
	return d.Store.Rebuild(ctx, records, damaged)
}

func TestDelOfARebuiltSandboxReleasesEverything(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+"), network("net1", "two+", "program"), network("net2", "one+"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	m.lose([]int{1, 2})
	rebuilt, err := m.Rebuild(t.Context(), Lost{Sandbox: sandbox("c"), Plan: p}, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1 net1", "2 net2"}, names(rebuilt)); diff != "" {
		t.Error(diff)
	}
	if err := m.Check(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Errorf("CHECK of the rebuilt sandbox: %v", err)
	}
	deleted, err := m.Del(t.Context(), "c", "eth0", m.reach())
	if err != nil || deleted.Records != 3 || deleted.Damaged != nil {
		t.Errorf("Del = %+v, %v", deleted, err)
	}
	m.nothingLeft(t)
}

// A repeated ADD must not answer with what was only guessed.
func TestRebuiltSandboxIsAttachedAnewByARepeatedAdd(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("eth0", "one+"))
	first, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	m.lose([]int{0})
	if _, err := m.Rebuild(t.Context(), Lost{Sandbox: sandbox("c"), Plan: p}, m.reach()); err != nil {
		t.Fatal(err)
	}
	again, err := m.Add(t.Context(), sandbox("c"), p, m.reach())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first[0].Result, again[0].Result); diff != "" {
		t.Errorf("the result of a new attachment: %s", diff)
	}
}

type sweeper struct {
	addresses
	swept []string
}

func (s *sweeper) Sweep(_ context.Context, containerID string) error {
	s.swept = append(s.swept, containerID)
	return nil
}

func TestAddressesOfUnknownAttachmentsAreSwept(t *testing.T) {
	m := newMachine(t, t.TempDir())
	s := &sweeper{addresses: addresses{m.world}}
	m.IPAM = map[string]ipam.Plugin{"addresses": s}
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+")), m.reach()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Del(t.Context(), "d", "eth0", m.reach()); err != nil || len(s.swept) > 0 {
		t.Fatalf("swept %v without a reason, %v", s.swept, err)
	}
	m.lose([]int{0})
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"c"}, s.swept); diff != "" {
		t.Error(diff)
	}
}

// What could be read of a damaged record may be of no attachment that ever was,
// so a DEL that cannot succeed by it must not keep the pod from ending.
func TestGuessedAttachmentIsGivenUp(t *testing.T) {
	broken := errors.New("not like this")
	for name, c := range map[string]struct {
		was, guess plan.Attachment
		broken     map[string]error
		gaveUp     int
	}{
		"right":              {network("net1", "two+", "program"), network("net1", "two+", "program"), nil, 0},
		"of another name":    {network("net1", "two+"), network("jet1", "two+"), nil, 0},
		"unknown program":    {network("net1", "two+"), network("net1", "tvo+"), map[string]error{"run tvo": broken}, 1},
		"program that fails": {network("net1", "two+"), network("net1", "program"), map[string]error{"detach c/net1/program": broken}, 1},
		"driver that fails":  {network("net1", "two+"), network("net1", "fails"), map[string]error{"detach c/net1/fails": broken}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			s := &sweeper{addresses: addresses{m.world}}
			m.IPAM = map[string]ipam.Plugin{"addresses": s}
			if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+"), c.was), m.reach()); err != nil {
				t.Fatal(err)
			}
			m.broken = c.broken
			m.lose([]int{1}, recordOf(1, c.guess))
			lost := Lost{Sandbox: sandbox("c"), Plan: planOf(network("eth0", "one+")), Ending: true}
			if _, err := m.Rebuild(t.Context(), lost, m.reach()); err != nil {
				t.Fatal(err)
			}
			deleted, err := m.Del(t.Context(), "c", "eth0", m.reach())
			if failed := err != nil; failed != (c.gaveUp > 0) {
				t.Errorf("first Del = %+v, %v", deleted, err)
			}
			if err != nil {
				if deleted, err = m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
					t.Errorf("second Del = %v", err)
				}
			}
			if len(deleted.GaveUp) != c.gaveUp || len(m.records(t)) > 0 || !slices.Contains(s.swept, "c") {
				t.Errorf("gave up %v, swept %v, left %+v", deleted.GaveUp, s.swept, m.records(t))
			}
		})
	}
}

// Nobody who could run a program is no fault of what was guessed.
func TestGuessedAttachmentWaitsForWhoRunsItsProgram(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := planOf(network("net1", "program"))
	if _, err := m.Add(t.Context(), sandbox("c"), p, m.reach()); err != nil {
		t.Fatal(err)
	}
	m.lose([]int{0}, recordOf(0, p.Attachments[0]))
	if _, err := m.Rebuild(t.Context(), Lost{Sandbox: sandbox("c"), Ending: true}, m.reach()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := m.Del(t.Context(), "c", "eth0", Reach{}); err == nil {
			t.Error("a Del without a host succeeded")
		}
	}
	if _, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil {
		t.Error(err)
	}
	m.nothingLeft(t)
}

// forgetful is a store that cannot be written any more.
type forgetful struct{ Store }

var errFull = errors.New("no space left on device")

func (forgetful) Begin(context.Context, []store.Record) error     { return errFull }
func (forgetful) Remove(context.Context, ...store.Key) error      { return errFull }
func (forgetful) Attached(context.Context, ...store.Record) error { return errFull }

func TestFullDiskRefusesAddBeforeAnythingIsMade(t *testing.T) {
	m := newMachine(t, t.TempDir())
	m.Attacher.Store = forgetful{m.Attacher.Store}
	_, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+", "program")), m.reach())
	if !errors.Is(err, errFull) || !errors.Is(err, errNotRecorded) {
		t.Errorf("Add = %v", err)
	}
	if log := m.takeLog(); len(log) > 0 {
		t.Errorf("it was tried nevertheless: %q", log)
	}
}

func TestDelOnAFullDiskTakesEverythingDownAndKeepsTheRecords(t *testing.T) {
	m := newMachine(t, t.TempDir())
	if _, err := m.Add(t.Context(), sandbox("c"), planOf(network("eth0", "one+", "program"), network("net1", "two+")), m.reach()); err != nil {
		t.Fatal(err)
	}
	healthy := m.Attacher.Store
	m.Attacher.Store = forgetful{healthy}
	deleted, err := m.Del(t.Context(), "c", "eth0", m.reach())
	if err != nil || !errors.Is(deleted.Kept, errFull) {
		t.Errorf("Del = %+v, %v", deleted, err)
	}
	if left := m.things(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.Attacher.Store = healthy
	if deleted, err := m.Del(t.Context(), "c", "eth0", m.reach()); err != nil || deleted.Kept != nil {
		t.Errorf("Del = %+v, %v", deleted, err)
	}
	m.nothingLeft(t)
}

func TestWhatTakingDownNeeds(t *testing.T) {
	m := newMachine(t, t.TempDir())
	for name, c := range map[string]struct {
		at   plan.Attachment
		host bool
	}{
		"drivers alone":         {network("net1", "one+", "two"), false},
		"a program":             {network("net1", "one+", "program"), true},
		"a program's addresses": {plan.Attachment{Config: plan.Network{Plugins: []plan.Plugin{{Type: "one", IPAM: "dhcp"}}}}, true},
	} {
		if _, host := m.Needs([]store.Record{recordOf(0, c.at)}); host != c.host {
			t.Errorf("%s: needs a host: %t", name, host)
		}
	}
}
