package portmap_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"braid.dev/braid/internal/driver/portmap"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// envVictim makes this test program attach once, to be killed meanwhile: it
// holds the paths of the node's namespace.
const envVictim = "BRAID_TEST_PORTMAP_VICTIM"

func TestMain(m *testing.M) {
	if path := os.Getenv(envVictim); path != "" {
		if err := victim(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func victim(path string) error {
	node, err := netns.Open(path)
	if err != nil {
		return err
	}
	w := &world{node: node, d: portmap.New(portmap.Config{HostNS: node})}
	s := w.spec(conf("", someMappings))
	fmt.Println("now")
	_, err = w.d.Attach(context.Background(), s)
	return err
}

// A daemon may be killed at any moment of an Attach. Whatever was there by
// then, the next call must cope with.
func TestKilledAttachIsRepeatedOrRemoved(t *testing.T) {
	needRules(t, "nftables")
	w := &world{}
	var path string
	w.node, path = kerneltest.NewNamedNS(t)
	w.d = portmap.New(portmap.Config{HostNS: w.node})
	s := w.spec(conf("", someMappings))
	once := ""
	killed := 0
	for range 40 {
		if killVictim(t, path) {
			killed++
		}
		if rand.N(2) == 0 {
			must(w.d.Attach(t.Context(), s))(t)
			try(t, w.d.Check(t.Context(), s))
			if rules := w.rules(t); once == "" {
				once = rules
			} else if rules != once {
				t.Fatalf("rules after a repetition:\n%s, want\n%s", rules, once)
			}
		}
		try(t, w.d.Detach(t.Context(), s))
		if left := w.rules(t); strings.Contains(left, "test-container") {
			t.Fatalf("left:\n%s", left)
		}
	}
	if killed == 0 {
		t.Error("every Attach was over before it was killed: the test tested nothing")
	}
}

// killVictim starts an Attach and kills it within the time that one takes.
func killVictim(t *testing.T, path string) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envVictim+"="+path)
	cmd.Stderr = os.Stderr
	out := must(cmd.StdoutPipe())(t)
	try(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "now\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("victim says %q: %v", line, err)
	}
	// Any moment will do; this is not waiting for anything.
	<-time.After(rand.N(8 * time.Millisecond))
	cmd.Process.Kill()
	return cmd.Wait() != nil
}
