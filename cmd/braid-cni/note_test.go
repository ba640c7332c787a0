package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"braid.dev/braid/internal/wire"
)

// notesOf are the notes that calls on this socket have left.
func notesOf(t *testing.T, socket string) []wire.Note {
	t.Helper()
	notes, damaged, err := wire.ReadNotes(call{socket: socket}.notes())
	if err != nil || len(damaged) > 0 {
		t.Fatalf("%v, %v", damaged, err)
	}
	return notes
}

func TestDelWithoutADaemonLeavesANoteAndSucceeds(t *testing.T) {
	socket := socketPath(t)
	c := call{verb: "DEL", socket: socket, conf: `,"timeout":1`}
	for range 2 { // a repeated one replaces the first
		if o := c.run(t); o.code != 0 || o.stdout != "" || o.stderr != "" {
			t.Fatalf("%+v", o)
		}
	}
	notes := notesOf(t, socket)
	if len(notes) != 1 {
		t.Fatalf("%d notes", len(notes))
	}
	n := notes[0]
	want := wire.Request{
		Command: "DEL", ContainerID: "abc-1", NetNS: ownNS, IfName: "eth0",
		Args: "K8S_POD_NAME=p;X=y=z", Path: "/opt/cni/bin", Stdin: []byte(c.input()),
	}
	if fmt.Sprintf("%+v", n.Request) != fmt.Sprintf("%+v", want) {
		t.Errorf("the note is of %+v\nwant %+v", n.Request, want)
	}
	self, err := os.Open(ownNS)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if id, err := wire.Identify(self); err != nil || n.Namespace != id {
		t.Errorf("namespace %v; want %v, %v", n.Namespace, id, err)
	}
	if n.Written.IsZero() {
		t.Error("it has no time")
	}
}

func TestDelThatLosesItsDaemonLeavesANote(t *testing.T) {
	socket := socketPath(t)
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1000)
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 4))
			asked <- struct{}{}
			conn.Close()
		}
	}()
	if o := (call{verb: "DEL", socket: socket, conf: `,"timeout":1`}).run(t); o.code != 0 || o.stdout != "" {
		t.Errorf("%+v", o)
	}
	if len(asked) < 2 || len(notesOf(t, socket)) != 1 {
		t.Errorf("asked %d times, notes %v", len(asked), notesOf(t, socket))
	}
}

func TestDelWithoutDaemonAndNoteIsTriedAgainLater(t *testing.T) {
	socket := socketPath(t)
	for notes, says := range map[string]string{
		"/sys/braid": "writable for root", // nobody may make a directory there
		os.DevNull:   os.DevNull,
	} {
		e := call{verb: "DEL", socket: socket, conf: fmt.Sprintf(`,"timeout":1,"notes":%q`, notes)}.run(t).failure(t)
		if e.Code != 11 || !strings.Contains(e.Msg, "no note") || !strings.Contains(e.Details, says) || !strings.Contains(e.Details, "braidd pod") {
			t.Errorf("%s: %+v; want code 11 saying %q", notes, e, says)
		}
	}
	e := unwritten("/notes", wire.ErrUnreachable, &os.PathError{Op: "write", Path: "/notes/x", Err: syscall.ENOSPC})
	if e.Code != 11 || !strings.Contains(e.Details, "make room") {
		t.Errorf("full disk: %+v", e)
	}
}

func TestDelIsAskedOnceMoreWhenItsNoteIsWritten(t *testing.T) {
	request := wire.Request{Command: "DEL", ContainerID: "c", IfName: "eth0", Stdin: []byte("{}")}
	for name, test := range map[string]struct {
		failure *wire.Error
		left    int
	}{
		"served":  {nil, 0},
		"refused": {&wire.Error{Code: 11, Msg: "busy"}, 1},
	} {
		dir := filepath.Join(t.TempDir(), "notes")
		seen := make(chan int, 1)
		socket := daemon(t, func(c *wire.Conn) {
			notes, _, _ := wire.ReadNotes(dir)
			seen <- len(notes)
			_ = c.Reply(wire.Reply{Error: test.failure})
		})
		_, failure := leaveNote(t.Context(), dir, wire.Call{Socket: socket, Request: request, Run: runProgram}, wire.ErrUnreachable)
		if fmt.Sprint(failure) != fmt.Sprint(test.failure) {
			t.Errorf("%s: %v; want %v", name, failure, test.failure)
		}
		if receive(t, "request", seen) != 1 {
			t.Errorf("%s: asked before the note was there", name)
		}
		if notes, _, err := wire.ReadNotes(dir); err != nil || len(notes) != test.left {
			t.Errorf("%s: notes %v, %v; want %d", name, notes, err, test.left)
		}
	}
}

// What a pod may write without bound is not kept.
func TestNotesLeaveOutAnnotations(t *testing.T) {
	const list = `{"cniVersion":"1.1.0","name":"n","prevResult":{"ips":[]},"runtimeConfig":{`
	for conf, want := range map[string]string{
		list + `"portMappings":[1],"io.kubernetes.cri.pod-annotations":{"a":"<b>"}}}`: list + `"portMappings":[1]}}`,
		list + `"portMappings":[1]}}`: list + `"portMappings":[1]}}`,
		`{"name":"n"}`:                `{"name":"n"}`,
		`{"runtimeConfig":null}`:      `{"runtimeConfig":null}`,
		`no JSON`:                     `no JSON`,
	} {
		if have := withoutAnnotations([]byte(conf)); string(have) != want {
			t.Errorf("%s became %s, want %s", conf, have, want)
		}
	}
}

func TestOnlyADaemonThatIsAwayGetsANote(t *testing.T) {
	for err, want := range map[error]bool{
		wire.ErrUnreachable: true, wire.ErrLost: true,
		wire.ErrPeer: false, wire.ErrTooLarge: false, errTimeout: false, errors.New("interrupted"): false,
	} {
		if absent(&givenUp{command: "DEL", err: err}) != want {
			t.Errorf("%v: want %v", err, want)
		}
	}
}
