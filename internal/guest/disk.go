package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"braid.dev/braid/internal/guest/control"
)

// diskSize is how large a guest's disk seems to it, in bytes. The image is
// sparse: it takes what was written.
const diskSize = 32 << 30

// diskImage is the disk of a guest with a kernel of its own.
func diskImage(dir string) string { return filepath.Join(dir, "disk."+control.DiskType) }

// makeDisk makes the guest's disk unless there is one.
func makeDisk(ctx context.Context, c Config) error {
	if c.Disk == "" {
		return nil
	}
	if err := os.MkdirAll(c.Disk, 0o755); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if c.Kernel == Host {
		return nil
	}
	image := diskImage(c.Disk)
	if _, err := os.Stat(image); err == nil {
		return nil
	}
	fresh := image + ".new"
	if err := errors.Join(os.WriteFile(fresh, nil, 0o600), os.Truncate(fresh, diskSize)); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	// What is not written yet is zero: there is nothing to initialise or discard.
	_, err := output(ctx, c.Disk, "mkfs."+control.DiskType, "-q", "-F", "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1", fresh)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return os.Rename(fresh, image)
}
