// Package note is what the recorder, a CNI plugin for tests, and those tests
// tell each other through files of one directory.
package note

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Below the recorder's directory.
const (
	// Calls is the file of calls, one JSON object per line.
	Calls = "calls"
	// Held is a directory with a file for everything that an ADD took.
	Held = "held"
	// Behaviour is a directory: a file named after a verb, such as ADD, or a verb
	// and an interface, such as ADD-net1, says how the recorder behaves when it is
	// called so.
	Behaviour = "behaviour"
	// turns is a directory with a file per container.
	turns = "turns"
)

// What may be in a file of Behaviour.
const (
	Fail = "fail"
	Hang = "hang" // for as long as the file says so
	// Linger is to do what the verb is about and hang then.
	Linger = "linger"
)

// Codes of the recorder's own errors (CNI specification 1.1, section 5: plugins
// have 100 and above).
const (
	FailCode  = 117
	CheckCode = 118
)

// Call is one invocation. It is noted when it begins, and again when it is done.
type Call struct {
	Command, ContainerID, IfName, NetNS, Args string
	// Network is the name in the configuration.
	Network string
	PID     int
	Stdin   json.RawMessage
	// Beside says that another call for the same container had not ended.
	Beside bool
	// Done is set in the second note.
	Done   bool
	Failed bool
}

// Alone reports whether no other call for this container runs, and keeps the
// knowledge that this one does until the process ends.
func Alone(dir, containerID string) (bool, error) {
	fd, err := syscall.Open(filepath.Join(dir, turns, containerID), syscall.O_CREAT|syscall.O_RDONLY|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return false, err
	}
	// The descriptor stays open, and so locked, until the process ends.
	err = syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// Prepare makes the directory ready for a recorder.
func Prepare(dir string) error {
	var errs []error
	for _, name := range []string{Held, Behaviour, turns} {
		errs = append(errs, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	return errors.Join(errs...)
}

// Append adds a call to the file, on a line of its own. Killed in the middle it
// may leave the beginning of one.
func Append(dir string, c Call) error {
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, Calls), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\n%s\n", line) // one write: those of others come before or after
	return errors.Join(err, f.Close())
}

// Read returns all calls in the order of their notes, but for a note that was
// cut off.
func Read(dir string) ([]Call, error) {
	f, err := os.Open(filepath.Join(dir, Calls))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var calls []Call
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var c Call
		err := json.Unmarshal(lines.Bytes(), &c)
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) && syntax.Offset == int64(len(lines.Bytes())) {
			continue // empty, or cut off
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		calls = append(calls, c)
	}
	return calls, lines.Err()
}

// Wanted is how the recorder is to behave in this call, empty for well.
func Wanted(dir string, c Call) (string, error) {
	for _, name := range []string{c.Command, c.Command + "-" + c.IfName} {
		text, err := os.ReadFile(filepath.Join(dir, Behaviour, name))
		if err == nil {
			return string(text), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// Behave has the recorder behave in this way when it is called as said by call,
// the name of a file of Behaviour, and well again when how is empty.
func Behave(dir, call, how string) error {
	path := filepath.Join(dir, Behaviour, call)
	if how == "" {
		return os.Remove(path)
	}
	temp := filepath.Join(dir, call+".tmp")
	if err := os.WriteFile(temp, []byte(how), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
