package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sweep releases every address that a container holds in whatever network of
// the data dir, on whatever interface. It is for a container of which nothing
// is known any more but that it ended.
func (p *plugin) Sweep(ctx context.Context, containerID string) error {
	if containerID == "" {
		return errors.New("sweep addresses: whose?")
	}
	entries, err := os.ReadDir(p.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep addresses of container %s: %w", containerID, err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, p.sweep(ctx, filepath.Join(p.DataDir, e.Name()), containerID))
		}
	}
	return errors.Join(errs...)
}

func (p *plugin) sweep(ctx context.Context, dir, containerID string) error {
	d, err := p.enter(ctx, dir)
	if err != nil {
		return err
	}
	defer d.leave()
	st, err := d.read(0)
	if err != nil {
		return err
	}
	held := st.ownerless()
	for addr, h := range st.holders {
		if id, _, _ := strings.Cut(string(h), lineBreak); id == containerID {
			held = append(held, addr)
		}
	}
	if len(held) == 0 {
		return nil
	}
	return errors.Join(d.remove(held), p.files.Sync(dir))
}
