package daemon

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types/create"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/store"
)

// fromMultus makes up the records of what Multus attached a container to beside
// its default network, before Braid took its place: libcni remembers in a
// directory of Multus' own what its plugins were called with. A file that
// cannot be read is reported, and does not keep the pod from being deleted.
func (d *Daemon) fromMultus(sb store.Sandbox) []store.Record {
	entries, err := os.ReadDir(d.MultusCacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Log.Warn("what Multus attached a container to cannot be looked up", "container", sb.ContainerID, "err", err)
	}
	var records []store.Record
	for _, e := range entries {
		// The name is that of the network, the container and the interface.
		if !e.Type().IsRegular() || !strings.Contains(e.Name(), "-"+sb.ContainerID+"-") {
			continue
		}
		c, err := readCached(filepath.Join(d.MultusCacheDir, e.Name()))
		if err == nil && (c.Kind != cacheKind || c.ContainerID != sb.ContainerID || c.IfName == sb.IfName) {
			continue
		}
		var rec store.Record
		if err == nil {
			rec, err = c.record(sb)
		}
		if err != nil {
			d.Log.Warn("a network that Multus attached a container to is not removed", "container", sb.ContainerID, "file", e.Name(), "err", err)
			continue
		}
		records = append(records, rec)
	}
	slices.SortFunc(records, func(a, b store.Record) int { // net2 before net10
		x, y := a.Attachment.IfName, b.Attachment.IfName
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
	return records
}

// record is the record of an ADD that libcni remembers.
func (c cached) record(sb store.Sandbox) (store.Record, error) {
	network, err := plan.ParseNetwork(c.Config, c.NetworkName)
	if err != nil {
		return store.Record{}, err
	}
	a := plan.Attachment{Network: network.Name, IfName: c.IfName, Config: network, RuntimeConfig: c.CapabilityArgs}
	var args []string
	for _, pair := range c.CNIArgs {
		if pair[0] != "IgnoreUnknown" && !strings.HasPrefix(pair[0], "K8S_") { // those are the runtime's
			args = append(args, pair[0]+"="+pair[1])
		}
	}
	a.CNIArgs = strings.Join(args, ";")
	rec := store.Record{Sandbox: sb, Attachment: a}
	if result := resultOf(c.Result, create.CreateFromBytes); result != nil {
		if rec.Result, err = json.Marshal(result); err != nil {
			return store.Record{}, err
		}
	}
	return rec, nil
}
