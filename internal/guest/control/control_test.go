package control_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"braid.dev/braid/internal/guest/control"
)

func FuzzReadRequest(f *testing.F) {
	var b bytes.Buffer
	if err := control.WriteJSON(&b, control.KindRequest, control.Request{Op: control.OpRun}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("q\x00\x00\x00\x02{}"))
	f.Add([]byte("q\xff\xff\xff\xff"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := control.ReadRequest(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := control.WriteJSON(&again, control.KindRequest, q); err != nil {
			t.Fatalf("a request that was read cannot be written: %v", err)
		}
	})
}

func TestFramesKeepTheirBoundaries(t *testing.T) {
	var b bytes.Buffer
	frames := []struct {
		k    control.Kind
		data string
	}{{control.KindStdout, "one"}, {control.KindStdin, ""}, {control.KindStderr, "two\x00three"}}
	for _, f := range frames {
		if err := control.Write(&b, f.k, []byte(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range frames {
		k, data, err := control.Read(&b)
		if err != nil || k != f.k || string(data) != f.data {
			t.Errorf("read %q %q %v, want %q %q", k, data, err, f.k, f.data)
		}
	}
	if _, _, err := control.Read(&b); err != io.EOF {
		t.Errorf("after the last frame: %v, want EOF", err)
	}
}

func TestACutFrameIsNoEnd(t *testing.T) {
	var b bytes.Buffer
	if err := control.Write(&b, control.KindStdout, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < b.Len(); n++ {
		_, _, err := control.Read(bytes.NewReader(b.Bytes()[:n]))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v, want unexpected EOF", n, b.Len(), err)
		}
	}
}

func TestAFrameLargerThanTheLimitIsRefused(t *testing.T) {
	if err := control.Write(io.Discard, control.KindStdout, make([]byte, control.MaxFrame+1)); err == nil {
		t.Error("written")
	}
	if _, _, err := control.Read(bytes.NewReader([]byte("o\xff\xff\xff\xff"))); err == nil || err == io.EOF {
		t.Errorf("read: %v", err)
	}
}
