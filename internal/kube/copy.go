package kube

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"braid.dev/braid/internal/plan"
	"braid.dev/braid/internal/snapshot"
)

const (
	// copyPause is the shortest time between two writes of the copy: somebody who
	// applies hundreds of definitions costs a few.
	copyPause = 10 * time.Second
	// copySettle is how long the changes after a first one are gathered.
	copySettle = time.Second
)

// copyRetry is the pause after a write that failed, as on a full disk.
const copyRetry = time.Minute

// copyOnDisk is the copy of the definitions that survives a restart.
type copyOnDisk struct {
	path string
	log  *slog.Logger
	// rows are what the file held at the start, nil when there was none and
	// when the API has answered.
	rows atomic.Pointer[map[key]plan.Definition]
	// sum is that of the file, if known.
	sum   uint32
	known bool
}

// load reads the copy of an earlier run. One that cannot be read is none; the
// next write replaces it.
func (c *copyOnDisk) load(path string, log *slog.Logger) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c.path, c.log = path, log
	if path == "" {
		return
	}
	rows := map[key]plan.Definition{}
	sum, err := snapshot.Read(path, func(d *json.Decoder) error {
		for {
			var def plan.Definition
			if err := d.Decode(&def); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			rows[key{def.Namespace, def.Name}] = def
		}
	})
	switch {
	case err == nil:
		c.sum, c.known = sum, true
		c.rows.Store(&rows)
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("the copy of the network definitions cannot be used", "err", err)
	}
}

func (c *copyOnDisk) loaded() bool { return c.rows.Load() != nil }

func (c *copyOnDisk) get(k key) (plan.Definition, bool) {
	rows := c.rows.Load()
	if rows == nil {
		return plan.Definition{}, false
	}
	def, ok := (*rows)[k]
	return def, ok
}

// keepCopy writes the definitions down once they have been read, and then when
// they have changed, until ctx ends.
func (d *Definitions) keepCopy(ctx context.Context) {
	if d.copy.path == "" {
		return
	}
	select {
	case <-d.table.synced:
	case <-ctx.Done():
		return
	}
	d.copy.rows.Store(nil)
	for ctx.Err() == nil {
		_, _, changed := d.table.follow(key{})
		written := time.Now()
		if !d.copy.write(d.table.all()) {
			pause(ctx, copyRetry)
			continue
		}
		select {
		case <-changed:
			pause(ctx, max(copySettle, copyPause-time.Since(written)))
		case <-ctx.Done():
		}
	}
}

// write replaces the file unless it holds just that, and reports whether that
// is what it holds now.
func (c *copyOnDisk) write(rows map[key]plan.Definition) bool {
	sorted := slices.SortedFunc(maps.Keys(rows), func(a, b key) int { return strings.Compare(a.String(), b.String()) })
	values := func(e *json.Encoder) error {
		for _, k := range sorted {
			if err := e.Encode(rows[k]); err != nil {
				return err
			}
		}
		return nil
	}
	sum, err := snapshot.Sum(values)
	if err == nil && c.known && sum == c.sum {
		return true
	}
	if err == nil {
		err = snapshot.Write(c.path, values)
	}
	if err != nil {
		c.log.Warn("the copy of the network definitions cannot be written; a start without the API server would not know them", "err", err)
		return false
	}
	c.sum, c.known = sum, true
	return true
}
