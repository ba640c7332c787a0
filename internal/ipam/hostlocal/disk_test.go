package hostlocal

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalEndsNoCall, as with os.File. No file system of the tests lets one come
// in between.
func TestSignalEndsNoCall(t *testing.T) {
	answers := []error{unix.EINTR, unix.EINTR, unix.EIO}
	n, err := uninterrupted(func() (int, error) {
		err := answers[0]
		answers = answers[1:]
		return len(answers), err
	})
	if n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("%d, %v", n, err)
	}
}
