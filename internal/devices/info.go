package devices

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/plan"
)

// pluginDir, below the directory of device information files, has those of
// device plugins; the others have their path from the plan.
const pluginDir = "dp"

// maxInfo bounds a device information file, in bytes. They have about 200; what
// is read goes into the pod's annotation.
const maxInfo = 8 << 10

// Files are the device information files of a node. What is in them is written
// by others, and their names are made of what others say.
type Files struct {
	// Dir is the directory, the same path here and on the host. Device plugins
	// and CNI plugins expect it at /var/run/k8s.cni.cncf.io/devinfo (Device
	// Information Specification 1.1.0, section 4).
	Dir string
}

// Prepare has the file of an attachment hold what the device plugin wrote of
// its device, or not exist, so that a CNI plugin can write it: they write none
// over another (Device Information Specification 1.1.0, section 4.2.1).
func (f Files) Prepare(a plan.Attachment) error {
	name, err := f.name(a.DeviceInfoFile)
	if err != nil || name == "" {
		return err
	}
	root, err := f.open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("device information file: %w", err)
	}
	defer root.Close()
	if err := remove(root, name); err != nil {
		return fmt.Errorf("device information file: %w", err)
	}
	// What is wrong with that file is told by Read.
	info, _ := readPlugin(root, a.Device)
	if info == nil {
		return nil
	}
	if err := write(root, name, info); err != nil {
		return fmt.Errorf("device information file: %w", err)
	}
	return nil
}

// Read returns what is known of the device after its plugins have run, nil if
// nothing is.
func (f Files) Read(a plan.Attachment) (json.RawMessage, error) {
	name, err := f.name(a.DeviceInfoFile)
	if err != nil || name == "" {
		return nil, err
	}
	root, err := os.OpenRoot(f.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device information file: %w", err)
	}
	defer root.Close()
	info, err := read(root, name)
	if err == nil && info == nil {
		info, err = readPlugin(root, a.Device)
	}
	return info, err
}

// Remove removes the file of an attachment. One that is not there is no error.
func (f Files) Remove(a plan.Attachment) error {
	name, err := f.name(a.DeviceInfoFile)
	if err != nil || name == "" {
		return err
	}
	root, err := os.OpenRoot(f.Dir)
	if err == nil {
		defer root.Close()
		err = remove(root, name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("device information file: %w", err)
	}
	return nil
}

// name is the path below Dir of an attachment's file, empty for none.
func (f Files) name(path string) (string, error) {
	if path == "" || f.Dir == "" {
		return "", nil
	}
	name, err := filepath.Rel(f.Dir, path)
	if err != nil || !filepath.IsLocal(name) || filepath.Dir(name) == pluginDir || filepath.Dir(name) == "." {
		return "", fmt.Errorf("device information file %s: it is not in a directory for attachments below %s", path, f.Dir)
	}
	return name, nil
}

// open opens Dir, and makes it with the directory below it if they are not
// there. From here on no name leads out of it, nor a link that somebody put
// there.
func (f Files) open(below string) (*os.Root, error) {
	if err := os.MkdirAll(f.Dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(f.Dir)
	if err != nil {
		return nil, err
	}
	if err := root.MkdirAll(below, 0o755); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// readPlugin reads what the device plugin wrote, nil if it wrote nothing
// (section 4.1).
func readPlugin(root *os.Root, d plan.Device) (json.RawMessage, error) {
	if d.Resource == "" || d.ID == "" {
		return nil, nil
	}
	flat := func(s string) string { return strings.ReplaceAll(s, "/", "-") }
	return read(root, filepath.Join(pluginDir, flat(d.Resource)+"-"+flat(d.ID)+"-device.json"))
}

// read reads a file that somebody else wrote: no device or pipe, and nothing
// large. It is nil when there is none.
func read(root *os.Root, name string) (json.RawMessage, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device information file %s: %w", name, err)
	}
	defer file.Close()
	stat, err := file.Stat()
	if err == nil && !stat.Mode().IsRegular() {
		err = errors.New("it is no ordinary file")
	}
	if err != nil {
		return nil, fmt.Errorf("device information file %s: %w", name, err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxInfo+1))
	if err == nil {
		data, err = parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("device information file %s: %w", name, err)
	}
	return data, nil
}

// parse is the content of a file in its shortest form, if it is device
// information (section 3).
func parse(data []byte) ([]byte, error) {
	if len(data) > maxInfo {
		return nil, fmt.Errorf("it has more than %d bytes", maxInfo)
	}
	if !utf8.Valid(data) {
		return nil, errors.New("it is no text") // which an annotation is
	}
	var info struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return nil, fmt.Errorf("it is no device information: %w", err)
	}
	if info.Type == "" {
		return nil, errors.New("it is no device information: there is no type")
	}
	var short bytes.Buffer
	if err := json.Compact(&short, data); err != nil {
		return nil, err
	}
	return short.Bytes(), nil
}

// write puts a whole file in place, or none. Nothing needs it after a reboot.
func write(root *os.Root, name string, data []byte) error {
	temporary := name + ".new"
	if err := remove(root, temporary); err != nil {
		return err
	}
	file, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		return errors.Join(err, remove(root, temporary))
	}
	return nil
}

func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
