package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestDecodeReadsWhatEncodeWrote(t *testing.T) {
	for name, m := range map[string]message{
		"request": {Request: &Request{Version: Version, Command: "ADD", ContainerID: "c", NetNS: "/run/netns/x", IfName: "eth0",
			Args: "A=B", Path: "/opt/cni/bin", Stdin: []byte("not \xff JSON"), Timeout: time.Minute}},
		"exec":   {Exec: &Exec{ID: 7, Name: "host-local", Dirs: []string{"/a", "/b"}, Args: []string{"x"}, Env: []string{"A=B"}, Stdin: []byte{0}, Timeout: time.Second}},
		"cancel": {Cancel: 7},
		"result": {Result: &ExecResult{ID: 7, Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3, Failure: TimedOut, Detail: "d"}},
		"reply":  {Reply: &Reply{Stdout: []byte("{}"), Error: &Error{Code: 11, Msg: "m", Details: "d"}}},
	} {
		t.Run(name, func(t *testing.T) {
			frame, err := encode(m)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decode(bytes.NewReader(frame))
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("decode = %+v, %v; want %+v", got, err, m)
			}
		})
	}
}

func TestDecodeTellsTheEndOfTheStreamFromACutMessage(t *testing.T) {
	frame, err := encode(message{Cancel: 1})
	if err != nil {
		t.Fatal(err)
	}
	for cut := range frame {
		want := io.ErrUnexpectedEOF
		if cut == 0 {
			want = io.EOF
		}
		if _, err := decode(bytes.NewReader(frame[:cut])); err != want {
			t.Errorf("first %d of %d bytes: %v, want %v", cut, len(frame), err, want)
		}
	}
}

func TestDecodeRefusesALargeFrameBeforeReadingIt(t *testing.T) {
	header := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	rest := strings.NewReader("unread")
	if _, err := decode(io.MultiReader(bytes.NewReader(header), rest)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("decode: %v, want ErrTooLarge", err)
	}
	if rest.Len() != len("unread") {
		t.Errorf("%d bytes left, the body was read", rest.Len())
	}
}

func TestDecodeReservesNoMemoryForALengthAlone(t *testing.T) {
	header := binary.BigEndian.AppendUint32(nil, MaxFrame)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decode(bytes.NewReader(header)); err != io.ErrUnexpectedEOF {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("%d bytes allocated for an empty body", got)
	}
}

func TestEncodeRefusesWhatThePeerWould(t *testing.T) {
	fits := message{Request: &Request{Args: strings.Repeat("x", MaxFrame-200)}}
	if frame, err := encode(fits); err != nil {
		t.Error(err)
	} else if _, err := decode(bytes.NewReader(frame)); err != nil {
		t.Error(err)
	}
	if _, err := encode(message{Request: &Request{Args: strings.Repeat("x", MaxFrame)}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("encode: %v, want ErrTooLarge", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []message{
		{}, {Cancel: 1}, {Request: &Request{Version: 1, Command: "ADD", Stdin: []byte("{}")}},
		{Exec: &Exec{ID: 1, Name: "x", Timeout: 1}}, {Result: &ExecResult{ID: 1}}, {Reply: &Reply{Error: &Error{Code: 1}}},
	} {
		frame, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
		f.Add(frame[:len(frame)-1])
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte("\x00\x00\x00\x04null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		frame, err := encode(m)
		if err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", m, err)
		}
		again, err := decode(bytes.NewReader(frame))
		if err != nil {
			t.Fatalf("%+v was written but cannot be read: %v", m, err)
		}
		if once, _ := encode(again); !bytes.Equal(once, frame) {
			t.Fatalf("%s became %s", frame, once)
		}
	})
}

func FuzzRights(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x14\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x09\x00\x00\x00"))
	f.Add([]byte("\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00"))
	f.Add([]byte("\x11\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x000"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Only the parser: the numbers in data are no descriptors of ours.
		fds, err := descriptors(data)
		if err == nil && len(fds)*4 > len(data) {
			t.Fatalf("%d descriptors in %d bytes", len(fds), len(data))
		}
	})
}
