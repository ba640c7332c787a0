package rtnl

import (
	"encoding/binary"
	"errors"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Remover removes links without waiting for what the kernel does after they
// are gone.
//
// To delete a link takes the kernel about 20 ms. For four fifths of that the
// link, its name, its addresses and routes are gone already, the lock that all
// requests share is free again, and the call only waits until nobody can still
// look at the memory (rcu_barrier in netdev_run_todo). A container's end need
// not wait for that.
type Remover struct {
	busy chan struct{}
}

// maxFreeing bounds the threads that wait for the kernel to free links. Whoever
// removes more than that at once waits for his own.
const maxFreeing = 32

// NewRemover returns a Remover. One serves a whole driver. On a machine with
// one CPU it is nil: there the kernel has nobody to wait for, and to change
// threads takes longer.
func NewRemover() *Remover {
	if runtime.NumCPU() == 1 {
		return nil
	}
	return &Remover{busy: make(chan struct{}, maxFreeing)}
}

// Del removes the link as Handle.Del does, and returns when it is gone. The
// goroutine that it leaves behind ends when the kernel has freed the link; a
// process that ends before that loses nothing. A nil Remover is Handle.Del.
func (r *Remover) Del(h *Handle, index int) error {
	if r == nil {
		return h.Del(index)
	}
	select {
	case r.busy <- struct{}{}:
	default:
		return h.Del(index)
	}
	free := func() { <-r.busy }
	events, err := subscribe(h.ns)
	if err != nil {
		defer free()
		return h.Del(index)
	}
	defer events.Close()
	own, err := Open(h.ns) // h is closed when the caller is done
	if err != nil {
		free()
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer free()
		defer own.Close()
		done <- own.Del(index)
		events.SetReadDeadline(time.Now()) // fails when nobody reads any more
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := events.Read(buf)
		if err != nil { // the deletion is over, or events were lost
			return <-done
		}
		if gone(buf[:n], index) {
			break
		}
	}
	// What is still to be done under the lock, such as the other end of a veth,
	// is done when this has got the lock.
	if _, err := h.LinkByIndex(index); !errors.Is(err, ErrNotFound) {
		return <-done
	}
	return nil
}

// gone looks in a datagram of the kernel for the news that a link was deleted.
func gone(datagram []byte, index int) bool {
	msgs, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		// Family AF_BRIDGE says that it is no bridge port any more.
		if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
			continue
		}
		if got := binary.NativeEndian.Uint32(m.Data[4:8]); int(got) == index {
			return true
		}
	}
	return false
}
