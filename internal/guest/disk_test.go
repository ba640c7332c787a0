package guest_test

import (
	"path/filepath"
	"testing"

	"braid.dev/braid/internal/guest"
	"braid.dev/braid/internal/kerneltest"
)

func TestWhatAGuestHasWrittenOnItsDiskIsThereWhenItStartsAgain(t *testing.T) {
	for _, tc := range []struct {
		kernel guest.Kernel
		need   kerneltest.Feature
	}{{guest.UML, kerneltest.UML}, {guest.Host, kerneltest.Veth}, {guest.QEMU, kerneltest.QEMU}} {
		t.Run(string(tc.kernel), func(t *testing.T) {
			_, nsPath := bridgeNS(t)
			kerneltest.Need(t, tc.need)
			c, _ := furnished(t, nsPath, "disk")
			c.Kernel, c.Disk = tc.kernel, filepath.Join(t.TempDir(), "disk")
			if tc.kernel == guest.QEMU {
				c.MemoryMiB, c.Processors = 512, 2
			}
			g := start(t, c)
			// The directories that a node's programs write to, and the rest of the
			// tree; memory stays memory.
			output(t, g, "sh", "-ec", `
				for d in /etc/cni/net.d /var/lib/kubelet /var/lib/containerd /etc /root; do mkdir -p $d; echo kept >$d/braid-disk; done
				rm /etc/hostname
				ip link add braidgone type veth peer name braidgone2
				echo lost >/run/braid-disk`)
			stop(t, g, c.Dir)

			g = start(t, c)
			const look = `cat /etc/cni/net.d/braid-disk /var/lib/kubelet/braid-disk /var/lib/containerd/braid-disk /etc/braid-disk /root/braid-disk | tr '\n' ' '
				ls /run/braid-disk /sys/class/net/braidgone 2>/dev/null
				mkdir -p /var/lib/containerd/l /var/lib/containerd/u /var/lib/containerd/w /mnt
				mount -t overlay overlay -o lowerdir=/var/lib/containerd/l,upperdir=/var/lib/containerd/u,workdir=/var/lib/containerd/w /mnt && echo overlay
				hostname`
			if got, want := output(t, g, "sh", "-c", look), "kept kept kept kept kept overlay\ndisk"; got != want {
				t.Errorf("after the restart: %q, want %q", got, want)
			}
			if got := output(t, g, "sh", "-c", "nproc; grep -c ^processor /proc/cpuinfo"); tc.kernel == guest.QEMU && got != "2\n2" {
				t.Errorf("%q processors, want 2 of them known to all", got)
			}
		})
	}
}

func TestAThrowAwayGuestHasNoDisk(t *testing.T) {
	_, err := guest.RunOnce(t.Context(), guest.Config{Name: "once", Disk: t.TempDir()}, guest.Cmd{Args: []string{"true"}})
	if err == nil {
		t.Error("what it would keep is nobody's")
	}
}
