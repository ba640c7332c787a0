package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// datagram is one message of the kernel, with the number 7.
func datagram(kind uint16, body string) []byte {
	head := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(head[0:], uint32(len(head)+len(body)))
	binary.NativeEndian.PutUint16(head[4:], kind)
	binary.NativeEndian.PutUint32(head[8:], 7)
	return append(head, body...)
}

func number(err unix.Errno) string {
	return string(binary.NativeEndian.AppendUint32(nil, -uint32(err)))
}

func TestVerdictsOfTheKernel(t *testing.T) {
	for _, tc := range []struct {
		what     string
		datagram []byte
		answer   string
		err      error
	}{
		{"an answer", datagram(unix.RTM_NEWLINK, "link"), "link", nil},
		{"two answers", append(datagram(unix.RTM_NEWLINK, "link"), datagram(unix.RTM_NEWLINK, "more")...), "link", nil},
		{"an acknowledgement", datagram(unix.NLMSG_ERROR, number(0)), "", nil},
		{"a refusal", datagram(unix.NLMSG_ERROR, number(unix.EEXIST)+"the request"), "", unix.EEXIST},
	} {
		m := parseMessage(tc.datagram)
		if got, err := m.verdict(); m.seq != 7 || m.length > len(tc.datagram) || string(got) != tc.answer || !errors.Is(err, tc.err) {
			t.Errorf("%s: %+v: %q, %v", tc.what, m, got, err)
		}
	}
	if _, err := parseMessage(datagram(unix.NLMSG_ERROR, "\x00\x00")).verdict(); err == nil {
		t.Error("half a number is no error")
	}
	whole := datagram(unix.RTM_NEWLINK, "link")
	if m := parseMessage(whole[:18]); m.seq != 7 || m.length != len(whole) || string(m.body) != "li" {
		t.Errorf("half an answer: %+v", m)
	}
	for _, raw := range [][]byte{nil, whole[:12], make([]byte, 16)} {
		if m := parseMessage(raw); m.seq != 0 || m.length != 0 {
			t.Errorf("no message: %+v", m)
		}
	}
}

// FuzzParseMessage finds out whether what is read of a datagram is in it.
func FuzzParseMessage(f *testing.F) {
	f.Add(datagram(unix.RTM_NEWLINK, "link"))
	f.Add(datagram(unix.NLMSG_ERROR, number(unix.ENODEV)))
	f.Add(datagram(unix.NLMSG_ERROR, "\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := parseMessage(raw)
		if answer, err := m.verdict(); len(m.body) > m.length || err == nil && !bytes.Contains(raw, answer) {
			t.Errorf("%x: %+v: %x", raw, m, answer)
		}
	})
}

func TestAnswerToAnEarlierRequestIsPassedOver(t *testing.T) {
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	// Its answer is not read, as after an error in between.
	earlier := linkRequest(unix.RTM_GETLINK, 4711, 0, 0)
	earlier.Seq = 99
	if _, err := unix.Write(c.fd, earlier.Serialize()); err != nil {
		t.Fatal(err)
	}
	answer, err := c.do(linkRequest(unix.RTM_GETLINK, 1, 0, 0))
	if err != nil || len(answer) < unix.SizeofIfInfomsg || binary.NativeEndian.Uint32(answer[4:]) != 1 {
		t.Errorf("link 1: %x, %v", answer, err)
	}
}

// The library's socket is opened when the handle's namespace may be closed, and
// the thread in another one.
func TestLibraryIsInTheNamespaceOfTheHandle(t *testing.T) {
	kerneltest.Need(t, kerneltest.Bridge)
	ns, path := kerneltest.NewNamedNS(t)
	again, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Open(again)
	if err = errors.Join(err, again.Close()); err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	other, err := Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.AddBridge(Bridge{New: New{Name: "here0"}}); err != nil {
		t.Fatal(err)
	}
	lent := h.Lend()
	links, err := lent.Links()
	if err != nil || !slices.ContainsFunc(links, func(l Link) bool { return l.Name == "here0" }) {
		t.Errorf("links %+v, %v", links, err)
	}
	lent.Close()
	if _, err := h.Links(); err != nil {
		t.Errorf("it is closed: %v", err)
	}
}
