package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"braid.dev/braid/internal/confdir"
)

func (n *node) uninstall(more ...string) (string, error) {
	n.t.Helper()
	command := append(n.uninstallCommand(), more...)
	return n.ran(exec.Command(command[0], command[1:]...))
}

func (n *node) uninstallCommand() []string {
	return []string{
		filepath.Join(n.programs, "braidd"), "uninstall", "--run-dir=" + n.path("run"), "--state-dir=" + n.path("state"),
		"--cni-conf-dir=" + n.path("conf"), "--cni-bin-dir=" + n.path("bin"), "--shim-dir=" + n.path("bin"),
	}
}

// ran runs cmd on the node and returns all it printed.
func (n *node) ran(cmd *exec.Cmd) (string, error) {
	n.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.ns.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// twoNetworks has every container get a second network, which only Braid knows
// how to take away.
func (n *node) twoNetworks() {
	n.settings = "confDirNetworks: 2\n"
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.write("conf/20-second.conflist", `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"bridge","bridge":"braidbr1",
		"ipam":{"type":"host-local","dataDir":"`+n.path("addresses")+`","subnet":"10.78.0.0/24"}}]}`, 0o644)
}

func (n *node) files(dir string) (names []string) {
	n.t.Helper()
	entries, err := os.ReadDir(n.path(dir))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestUninstallLeavesTheNodeToItsDefaultNetwork(t *testing.T) {
	n := newNode(t)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.write("bin/braid-cni", "the shim", 0o755)
	n.start(true)
	p := n.newPod("c1")
	p.ok("ADD")
	if out, err := n.uninstall(); err == nil || !strings.Contains(out, "braidd runs on this node") {
		t.Errorf("while it runs: %v: %s", err, out)
	}
	if _, err := os.Stat(n.path("conf/" + confdir.OwnFile)); err != nil {
		t.Errorf("the refused uninstall removed something: %v", err)
	}
	n.kill()
	before := n.world()
	for range 2 {
		if out, err := n.uninstall(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if left := n.files("conf"); len(left) != 1 || left[0] != "10-default.conflist" {
		t.Errorf("conf dir: %v", left)
	}
	for _, dir := range []string{"bin", "run", "state"} {
		if left := n.files(dir); len(left) > 0 {
			t.Errorf("%s: %v", dir, left)
		}
	}
	// The pod keeps its network: the plugin of the network takes it down.
	if after := n.world(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestUninstallIsRefusedWhilePodsHaveOtherNetworks(t *testing.T) {
	n := newNode(t)
	n.twoNetworks()
	n.start(true)
	p := n.newPod("c1")
	p.ok("ADD")
	n.kill()
	before := n.world()
	out, err := n.uninstall()
	if err == nil || !strings.Contains(out, "container c1 has eth1 (second)") || !strings.Contains(out, "--force") {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(n.path("conf/" + confdir.OwnFile)); err != nil || n.world() != before {
		t.Errorf("the refused uninstall removed something: %v", err)
	}
	if out, err := n.uninstall("--force"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after := n.world()
	if strings.Contains(after, "reserved 10.78.") || !strings.Contains(after, "reserved 10.77.") {
		t.Errorf("the second network is to go and the default one to stay:\n%s", after)
	}
	if left := n.files("state"); len(left) > 0 {
		t.Errorf("state: %v", left)
	}
}

// A container that ended while the daemon was away is nobody's any more.
func TestUninstallServesNotedDels(t *testing.T) {
	n := newNode(t)
	n.twoNetworks()
	n.start(true)
	warm := n.newPod("warm-up")
	warm.ok("ADD")
	warm.ok("DEL")
	before := n.world()
	p := n.newPod("c1")
	p.ok("ADD")
	n.kill()
	p.ok("DEL")
	if notes := n.files("state/notes"); len(notes) != 1 {
		t.Fatalf("notes: %v", notes)
	}
	if out, err := n.uninstall(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after := n.world(); after != before {
		t.Errorf("before ADD:\n%s\nafter:\n%s", before, after)
	}
}

func TestUninstallKeepsTheStateOfAMigration(t *testing.T) {
	n := newNode(t)
	if err := os.MkdirAll(n.path("state/migrate/one"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("state/braid.db.damaged-1", "x", 0o600)
	n.write("conf/00-braid.conflist.cilium_bak", "what Cilium made of it", 0o600)
	if out, err := n.uninstall(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if left := n.files("state"); len(left) != 1 || left[0] != "migrate" {
		t.Errorf("state: %v", left)
	}
	if left := n.files("conf"); len(left) > 0 {
		t.Errorf("conf dir: %v", left)
	}
}

// As in its DaemonSet: the directories are mounts in a container whose root
// cannot be written.
func TestUninstallFromAContainerEmptiesItsMounts(t *testing.T) {
	n := newNode(t)
	n.write("conf/10-default.conflist", n.bridgeNetwork(""), 0o644)
	n.write("bin/braid-cni", "the shim", 0o755)
	n.start(true)
	n.newPod("c1").ok("ADD")
	n.kill()
	const container = `root=$1; shift
		mount --bind "$root" "$root"
		for d in run state conf bin; do mount --bind "$root/$d" "$root/$d"; done
		mount -o remount,bind,ro "$root"
		exec "$@"`
	cmd := exec.Command("sh", append([]string{"-ec", container, "container", n.path(".")}, n.uninstallCommand()...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := n.ran(cmd); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for dir, want := range map[string]int{"conf": 1, "bin": 0, "run": 0, "state": 0} {
		if left := n.files(dir); len(left) != want {
			t.Errorf("%s: %v", dir, left)
		}
	}
}
