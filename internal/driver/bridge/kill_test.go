package bridge_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/driver/bridge"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// envVictim makes this test program attach once, to be killed meanwhile: it
// holds the paths of the node's and of the container's namespace.
const envVictim = "BRAID_TEST_BRIDGE_VICTIM"

func TestMain(m *testing.M) {
	if paths := os.Getenv(envVictim); paths != "" {
		if err := victim(paths); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const victimConf = `{"cniVersion":"1.0.0","name":"testnet","type":"bridge","bridge":"braidbr0","isGateway":true,` +
	`"ipMasq":true,"ipMasqBackend":"nftables","macspoofchk":true,"ipam":` + oneIPv4 + `}`

func victim(paths string) error {
	host, pod, _ := strings.Cut(paths, ",")
	hostNS, err := netns.Open(host)
	if err != nil {
		return err
	}
	podNS, err := netns.Open(pod)
	if err != nil {
		return err
	}
	w := &world{host: hostNS, pod: podNS, podPath: pod, d: bridge.New(bridge.Config{HostNS: hostNS})}
	s := w.spec(victimConf)
	fmt.Println("now")
	_, err = w.d.Attach(context.Background(), s)
	return err
}

// A daemon may be killed at any moment of an Attach. Whatever was there by
// then, the next call must cope with.
func TestKilledAttachIsRepeatedOrRemoved(t *testing.T) {
	kerneltest.Need(t, kerneltest.NftInet, kerneltest.NftBridge, kerneltest.Veth, kerneltest.Bridge)
	w := &world{}
	var hostPath string
	w.host, hostPath = kerneltest.NewNamedNS(t)
	w.pod, w.podPath = kerneltest.NewNamedNS(t)
	w.d = bridge.New(bridge.Config{HostNS: w.host})
	s := w.spec(victimConf)
	s.Prev = w.attach(t, s)
	try(t, w.d.Detach(t.Context(), s))
	empty := w.text(t) + nftRules(t, w.host)
	moments := map[string]int{}
	for range 60 {
		moments[killed(t, hostPath+","+w.podPath)]++
		s.Prev = nil
		if rand.N(2) == 0 {
			s.Prev = w.attach(t, s)
			if err := w.d.Check(t.Context(), s); err != nil {
				t.Fatalf("Check after a repeated Attach: %v", err)
			}
		}
		try(t, w.d.Detach(t.Context(), s))
		if left := w.text(t) + nftRules(t, w.host); left != empty {
			t.Fatalf("left:\n%swant\n%s", left, empty)
		}
	}
	t.Logf("ends of the killed: %v", moments)
	if moments["killed"] == 0 {
		t.Error("every Attach was over before it was killed: the test tested nothing")
	}
}

// killed starts an Attach and kills it within the time that one takes.
func killed(t *testing.T, paths string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envVictim+"="+paths)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "now\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("victim says %q: %v", line, err)
	}
	// Any moment will do; this is not waiting for anything.
	<-time.After(rand.N(30 * time.Millisecond))
	cmd.Process.Kill()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "finished"
	case errors.As(err, &exit) && exit.ExitCode() == -1:
		return "killed"
	}
	t.Fatalf("victim: %v", err)
	return ""
}
