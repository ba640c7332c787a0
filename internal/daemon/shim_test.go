package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/netns"
)

// TestRealShimIsTheHand goes all the way round with the program that is shipped:
// a runtime asks for STATUS, its shim leaves a hand, that one runs a shim which
// brings a container's namespace, and all of them end with the daemon.
func TestRealShimIsTheHand(t *testing.T) {
	n := newNode(t)
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "braid-cni"), "../../cmd/braid-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	// It tells the process numbers of its parent, the shim, and of that one's, the hand.
	script := "#!/bin/sh\n" + `echo $PPID $(cut -d" " -f4 /proc/$PPID/stat) $CNI_NETNS` + "\n"
	if err := os.WriteFile(filepath.Join(bin, "plugin"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	wanted := n.daemon.wantHand()
	status := exec.Command(filepath.Join(bin, "braid-cni"))
	status.Env = []string{"CNI_COMMAND=STATUS", "PATH=" + os.Getenv("PATH")}
	status.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"braid","type":"braid-cni","socket":%q}`, n.socket()))
	if out, err := status.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("STATUS: %q, %v", out, err)
	}
	receive(t, "the hand", wanted)

	if found, err := n.daemon.lookAt(within(t), []string{n.netns, "/run/netns/braid-nowhere"}); err != nil || len(found) != 1 || found[n.netns] != idOf(t, n.netns) {
		t.Errorf("lookAt: %v, %v", found, err)
	}
	gone := n.sandbox("gone")
	gone.NetNS = "/run/netns/braid-nowhere"
	if reach, done, err := n.daemon.reachSandbox(within(t), gone); err != nil || reach.NS != nil {
		t.Errorf("a namespace that is gone: %+v, %v", reach, err)
	} else {
		done()
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	id, err := own.ID()
	if err != nil {
		t.Fatal(err)
	}
	// A container that was put into the host's namespace on purpose is there; one
	// whose path leads there by now is not.
	for _, test := range []struct {
		id    netns.ID
		there bool
	}{{id, true}, {idOf(t, n.netns), false}, {netns.ID{}, false}} {
		sb := n.sandbox("host")
		sb.NetNS, sb.NSID = "/proc/self/ns/net", test.id
		reach, done, err := n.daemon.reachSandbox(within(t), sb)
		if err != nil {
			t.Fatal(err)
		}
		if (reach.NS != nil) != test.there {
			t.Errorf("recorded as %v: %+v", test.id, reach.NS)
		}
		done()
	}

	reach, done, err := n.daemon.reachSandbox(within(t), n.sandbox("c"))
	if err != nil {
		t.Fatal(err)
	}
	if reach.NS == nil {
		t.Error("no namespace was brought")
	}
	out, err := reach.Host.Exec(within(t), driver.Program{Name: "plugin", Dirs: []string{bin}, Env: []string{"CNI_NETNS=" + n.netns}})
	var shim, hand, path string
	if _, scanErr := fmt.Sscan(string(out), &shim, &hand, &path); err != nil || scanErr != nil || path != n.netns {
		t.Fatalf("%q, %v, %v", out, err, scanErr)
	}
	done()
	if runs(shim) {
		t.Error("the shim that was sent for still runs after its end")
	}
	if !runs(hand) {
		t.Error("the hand has ended")
	}
	n.kill()
	eventually(t, "the hand ends with its daemon", func() bool { return !runs(hand) })
}

// runs is false also for a process that nobody waits for.
func runs(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
