package devices

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid.dev/braid/internal/plan"
)

const vf = `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:02.2"}}`

// files is a directory of device information files in which a device plugin
// has written of one device.
func files(t *testing.T, text string) Files {
	t.Helper()
	f := Files{Dir: filepath.Join(t.TempDir(), "devinfo")}
	put(t, filepath.Join(f.Dir, "dp", "intel.com-vf-0000:01:02.2-device.json"), text)
	return f
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
		t.Fatal(err)
	}
}

func (f Files) attachment(name string) plan.Attachment {
	return plan.Attachment{
		Device:         plan.Device{Resource: "intel.com/vf", ID: "0000:01:02.2"},
		DeviceInfoFile: filepath.Join(f.Dir, "cni", name),
	}
}

func TestSpec31DeviceInformationOfADevicePluginReachesPluginAndStatus(t *testing.T) {
	f := files(t, `{
		"type": "pci", "version": "1.1.0",
		"pci": {"pci-address": "0000:01:02.2"}
	}`)
	a := f.attachment("default-sriov-c1_net1")
	if err := f.Prepare(a); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(a.DeviceInfoFile); err != nil || string(text) != vf {
		t.Errorf("a plugin finds %s, %v", text, err)
	}
	if info, err := f.Read(a); err != nil || string(info) != vf {
		t.Errorf("Read = %s, %v", info, err)
	}
	for range 2 {
		if err := f.Remove(a); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(f.Dir, "cni", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSpec31DeviceInformationThatACNIPluginWritesIsRead(t *testing.T) {
	f := Files{Dir: filepath.Join(t.TempDir(), "devinfo")}
	a := plan.Attachment{DeviceInfoFile: filepath.Join(f.Dir, "cni", "default-userspace-c1_net1")}
	if err := f.Prepare(a); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Read(a); err != nil || info != nil {
		t.Errorf("before anybody wrote: %s, %v", info, err)
	}
	// Plugins write where there is a directory, and no file.
	written := `{"type":"vhost-user","version":"1.1.0","vhost-user":{"mode":"client","path":"/run/vhost.sock"}}`
	if err := os.WriteFile(a.DeviceInfoFile, []byte(written), 0o444); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Read(a); err != nil || string(info) != written {
		t.Errorf("Read = %s, %v", info, err)
	}
}

// Plugins write no file over another: what is left of an earlier attempt would
// be told of this one.
func TestDeviceInformationOfAnEarlierAttemptIsReplaced(t *testing.T) {
	f := files(t, vf)
	a := f.attachment("default-sriov-c1_net1")
	put(t, a.DeviceInfoFile, `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:09:09.9"}}`)
	if err := f.Prepare(a); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Read(a); err != nil || string(info) != vf {
		t.Errorf("Read = %s, %v", info, err)
	}
	a.Device = plan.Device{}
	if err := f.Prepare(a); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(a.DeviceInfoFile); !os.IsNotExist(err) {
		t.Errorf("without a device: %v", err)
	}
}

func TestDeviceInformationThatIsNoneIsReported(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "cut short": vf[:20], "a list": `[]`, "null": `null`, "without a type": `{"version":"1.1.0"}`,
		"no text": "{\"type\":\"pci\",\"x\":\"\xff\"}",
		"large":   `{"type":"pci","x":"` + strings.Repeat("x", maxInfo) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			f := files(t, text)
			a := f.attachment("n")
			if err := f.Prepare(a); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(a.DeviceInfoFile); !os.IsNotExist(err) {
				t.Errorf("the plugin is told it: %v", err)
			}
			if info, err := f.Read(a); err == nil || info != nil || !strings.Contains(err.Error(), "dp/intel.com-vf-0000:01:02.2-device.json") {
				t.Errorf("Read = %s, %v", info, err)
			}
			// A CNI plugin knows better.
			put(t, a.DeviceInfoFile, vf)
			if info, err := f.Read(a); err != nil || string(info) != vf {
				t.Errorf("Read = %s, %v", info, err)
			}
		})
	}
}

// The names are made of what pods and device plugins say.
func TestDeviceInformationStaysInItsDirectory(t *testing.T) {
	f := files(t, vf)
	outside := filepath.Join(filepath.Dir(f.Dir), "outside")
	put(t, outside, vf)
	for _, path := range []string{
		outside, filepath.Join(f.Dir, "..", "outside"), f.Dir + "/cni/../../outside", f.Dir, f.Dir + "/x", "relative",
		filepath.Join(f.Dir, "dp", "intel.com-vf-0000:01:02.2-device.json"),
	} {
		a := plan.Attachment{Device: plan.Device{Resource: "intel.com/vf", ID: "0000:01:02.2"}, DeviceInfoFile: path}
		if err := f.Prepare(a); err == nil {
			t.Errorf("Prepare %s succeeded", path)
		}
		if info, err := f.Read(a); err == nil {
			t.Errorf("Read %s = %s", path, info)
		}
		if err := f.Remove(a); err == nil {
			t.Errorf("Remove %s succeeded", path)
		}
	}
	// A link, which a plugin may have put there, leads nowhere either.
	a := f.attachment("link")
	if err := os.MkdirAll(filepath.Dir(a.DeviceInfoFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, a.DeviceInfoFile); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Read(a); err == nil {
		t.Errorf("Read of a link = %s", info)
	}
	if err := f.Prepare(a); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != vf {
		t.Errorf("outside: %s, %v", text, err)
	}
	// Nor does a device's name.
	a = f.attachment("n")
	a.Device = plan.Device{Resource: "../../x", ID: "../outside"}
	if info, err := f.Read(a); info != nil {
		t.Errorf("Read = %s, %v", info, err)
	}
}

// Reading a pipe would wait for whoever writes into it.
func TestPipeInsteadOfDeviceInformationIsRefused(t *testing.T) {
	f := files(t, vf)
	a := f.attachment("pipe")
	if err := os.MkdirAll(filepath.Dir(a.DeviceInfoFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(a.DeviceInfoFile, 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Read(a); err == nil || !strings.Contains(err.Error(), "no ordinary file") {
		t.Errorf("Read = %s, %v", info, err)
	}
}

func TestWithoutADirectoryThereIsNoDeviceInformation(t *testing.T) {
	f := Files{Dir: filepath.Join(t.TempDir(), "nowhere")}
	a := f.attachment("n")
	if info, err := f.Read(a); err != nil || info != nil {
		t.Errorf("Read = %s, %v", info, err)
	}
	if err := f.Remove(a); err != nil {
		t.Error(err)
	}
	if err := (Files{}).Prepare(plan.Attachment{}); err != nil {
		t.Error(err)
	}
}

func FuzzDeviceInformation(f *testing.F) {
	for _, seed := range []string{vf, ``, `{}`, `{"type":1}`, `{"type":"pci"}x`, `{"type":"pci","type":""}`, `[`, `{"type":"memif","memif":{"role":"slave"}} `} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := parse(data)
		if err != nil {
			return
		}
		if len(info) > maxInfo || !json.Valid(info) {
			t.Errorf("%q is taken as %q", data, info)
		}
		if again, err := parse(info); err != nil || string(again) != string(info) {
			t.Errorf("%q, read again, is %q, %v", info, again, err)
		}
	})
}
