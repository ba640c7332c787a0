package confswitch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/lab"
)

// TestClusterContainerdFollowsEveryStateAndStaysReady goes from every state to
// every other under a real containerd that is asked all the time: it must load
// what was written, and be ready for pods but for the moments of a load.
func TestClusterContainerdFollowsEveryStateAndStaysReady(t *testing.T) {
	if os.Getenv("BRAID_TIER") != "cluster" {
		t.Skip("needs BRAID_TIER=cluster: it builds and starts containerd")
	}
	built, err := lab.Build(t.Context(), lab.BuildConfig{Only: []string{"containerd"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			n := k.node(t)
			client := startContainerd(t, built["containerd"], n.Dir)
			ctx, stop := context.WithCancel(t.Context())
			asked := make(chan error, 1)
			go func() { asked <- staysReady(ctx, client) }()
			longest, changes := time.Duration(0), 0
			for _, from := range States() {
				for _, to := range States() {
					for _, want := range []v1alpha1.RuntimeState{from, to} {
						n.set(want)
						start := time.Now()
						if err := Verify(t.Context(), n.Config, client, want); err != nil {
							t.Fatal(err)
						}
						longest, changes = max(longest, time.Since(start)), changes+1
					}
				}
			}
			stop()
			if err := <-asked; err != nil {
				t.Error(err)
			}
			t.Logf("%d changes, each verified within %v", changes, longest)
		})
	}
}

// kubeletLooks is how often a kubelet asks its runtime whether the network is ready.
const kubeletLooks = 5 * time.Second

// staysReady asks without a pause until ctx ends. Containerd forgets its networks
// while it loads, and fails to load when the file that it has just listed goes
// before it is read; the removal makes it load again. A kubelet that asks in that
// moment asks again, so it must be over by then.
func staysReady(ctx context.Context, client *cri.Client) error {
	times, ready := 0, time.Now()
	for ctx.Err() == nil {
		s, err := client.Status(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		times++
		if s.NetworkReady && s.Info["lastCNILoadStatus"] == "OK" {
			ready = time.Now()
		} else if time.Since(ready) > kubeletLooks {
			return fmt.Errorf("not ready for pods for %v: %s, %s", time.Since(ready), s.Message, s.Info["lastCNILoadStatus"])
		}
	}
	if times < 10 {
		return fmt.Errorf("it was asked %d times only", times)
	}
	return nil
}

// startContainerd starts one for a conf dir and waits until it is ready.
func startContainerd(t *testing.T, program, confDir string) *cri.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, config := filepath.Join(dir, "c.sock"), filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = %[3]q
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[4]q]
  conf_dir = %[5]q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, filepath.Join(dir, "bin"), confDir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// It asks Braid's plugin for its STATUS before it says that it is ready.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755),
		os.WriteFile(filepath.Join(dir, "bin", "braid-cni"), []byte("#!/bin/sh\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	client, err := cri.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	// The CRI answers some time after its socket is there, without an event.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := client.Status(ctx)
		if err == nil && s.NetworkReady {
			return client
		}
		select {
		case <-ctx.Done():
			t.Fatalf("containerd does not become ready: %+v, %v", s, err)
		case <-tick.C:
		}
	}
}
