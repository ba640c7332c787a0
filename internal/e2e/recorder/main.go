// Command recorder is a CNI plugin for tests: it notes how it was called, holds
// something that a DEL has to give back, and misbehaves on demand.
//
// As the first plugin of a network it attaches nothing; behind another one it
// passes on that one's result.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"braid.dev/braid/internal/e2e/recorder/note"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/rtnl"
)

// conf is the recorder's configuration, as far as it is its own.
type conf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	PrevResult json.RawMessage `json:"prevResult"`
	// Dir is where it notes and holds things, and where tests tell it how to
	// behave; see package note.
	Dir string `json:"dir"`
	// Megabytes is how much memory it takes for a moment.
	Megabytes int `json:"megabytes"`
	// Rename is the new name of the interface that ADD finds, if not empty.
	Rename string `json:"rename"`
}

func main() {
	if err := run(); err != nil {
		var failure *types.Error
		if !errors.As(err, &failure) {
			failure = types.NewError(types.ErrInternal, err.Error(), "")
		}
		failure.Print() // to standard output, as plugins do
		os.Exit(1)
	}
}

func run() error {
	if os.Getenv("CNI_COMMAND") == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return nil
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var c conf
	if err := json.Unmarshal(stdin, &c); err != nil {
		return types.NewError(types.ErrDecodingFailure, "decode the configuration", err.Error())
	}
	call := note.Call{
		Command: os.Getenv("CNI_COMMAND"), ContainerID: os.Getenv("CNI_CONTAINERID"), IfName: os.Getenv("CNI_IFNAME"),
		NetNS: os.Getenv("CNI_NETNS"), Args: os.Getenv("CNI_ARGS"), Network: c.Name, PID: os.Getpid(), Stdin: stdin,
	}
	if call.ContainerID != "" {
		alone, err := note.Alone(c.Dir, call.ContainerID)
		if err != nil {
			return err
		}
		call.Beside = !alone
	}
	if err := note.Append(c.Dir, call); err != nil {
		return err
	}
	memory := bytes.Repeat([]byte{1}, c.Megabytes<<20)
	err = serve(c, call)
	call.Done, call.Failed = true, err != nil
	if len(memory) > 0 {
		memory[0]++ // in use until here
	}
	return errors.Join(err, note.Append(c.Dir, call))
}

func serve(c conf, call note.Call) error {
	if err := behave(c.Dir, call, note.Hang); err != nil {
		return err
	}
	held := filepath.Join(c.Dir, note.Held, strings.Join([]string{c.Name, call.ContainerID, call.IfName}, "_"))
	switch call.Command {
	case "ADD":
		if err := os.WriteFile(held, nil, 0o600); err != nil {
			return err
		}
		if err := behave(c.Dir, call, note.Linger); err != nil {
			return err
		}
		return add(c, call)
	case "DEL":
		if err := os.Remove(held); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	case "CHECK":
		if _, err := os.Stat(held); err != nil {
			return types.NewError(note.CheckCode, "what ADD took is not held", err.Error())
		}
	}
	return nil
}

func add(c conf, call note.Call) error {
	result := c.PrevResult
	if len(result) == 0 {
		result = json.RawMessage(fmt.Sprintf(`{"cniVersion":%q}`, c.CNIVersion))
	}
	if c.Rename != "" {
		if err := rename(call.NetNS, call.IfName, c.Rename); err != nil {
			return err
		}
		result = bytes.ReplaceAll(result, fmt.Appendf(nil, "%q", call.IfName), fmt.Appendf(nil, "%q", c.Rename))
	}
	_, err := os.Stdout.Write(result)
	return err
}

func rename(path, from, to string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.Link(from)
	if err != nil {
		return err
	}
	return h.SetName(link.Index, to)
}

// behave does what the test wants of this call at its beginning, or later on
// when stage is note.Linger.
func behave(dir string, call note.Call, stage string) error {
	for {
		behaviour, err := note.Wanted(dir, call)
		switch {
		case err != nil:
			return err
		case behaviour == stage:
			time.Sleep(5 * time.Millisecond) // until it is told otherwise, or killed
		case behaviour == note.Fail && stage == note.Hang:
			return types.NewError(note.FailCode, "the recorder was told to fail "+call.Command, "")
		default:
			return nil
		}
	}
}
