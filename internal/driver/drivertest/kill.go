package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"braid.dev/braid/internal/driver"
	"braid.dev/braid/internal/kerneltest"
	"braid.dev/braid/internal/netns"
)

// envVictim makes the test program attach once, to be killed meanwhile.
const envVictim = "BRAID_TEST_VICTIM"

// order is what a victim is to do.
type order struct {
	Type, Node, Pod, ContainerID, IfName, Conf string
	Prev                                       *current.Result
	IPAM                                       bool
}

// Main is for TestMain: it runs the tests of a package, or, in the program's
// second life as a victim of the suite, one Attach of the subject of that type.
func Main(m *testing.M, subjects ...Subject) {
	text := os.Getenv(envVictim)
	if text == "" {
		os.Exit(m.Run())
	}
	if err := victim(text, subjects); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func victim(text string, subjects []Subject) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	node, err := netns.Open(o.Node)
	if err != nil {
		return err
	}
	pod, err := netns.Open(o.Pod)
	if err != nil {
		return err
	}
	s := driver.Spec{ContainerID: o.ContainerID, IfName: o.IfName, NetNS: pod, NetNSPath: o.Pod, Conf: []byte(o.Conf), Prev: o.Prev}
	if o.IPAM {
		s.IPAM = &Static{Conf: s.Conf}
	}
	for _, sub := range subjects {
		if sub.Type == o.Type {
			d := Finishing(sub.New(node))
			fmt.Println("now")
			_, err = d.Attach(context.Background(), s)
			return err
		}
	}
	return fmt.Errorf("Main knows no subject of type %s", o.Type)
}

// killed: a daemon may be killed at any moment of an Attach. Whatever was
// there by then, the next call must cope with.
func killed(t *testing.T, s Subject) {
	variants, rounds := s.Variants, 24
	if inGuest() {
		variants, rounds = s.Variants[:1], 8 // to start a program takes half a second there
	}
	for _, v := range variants {
		t.Run(v.Name, func(t *testing.T) {
			kerneltest.Need(t, v.Needs...)
			killedAs(t, s, v, rounds)
		})
	}
}

func killedAs(t *testing.T, s Subject, v Variant, rounds int) {
	w, p, before := settled(t, s, v.Keys)
	spec := w.Spec(p, s.conf(v.Keys, s.some(), p.N))
	start := time.Now()
	spec = w.Attached(t, spec)
	takes := time.Since(start)
	try(t, w.Driver.Detach(t.Context(), spec))
	moments := map[string]int{}
	within := 3 * takes / 2
	for i := range rounds {
		end := kill(t, s.Type, w.NodePath, again(p, spec), within)
		moments[end]++
		// A busy machine may have made the one Attach that was timed much slower
		// than those that follow: the time is drawn to where they are killed.
		if end == "finished" {
			within = max(within/2, time.Microsecond)
		} else {
			within = min(2*within, 3*takes/2)
		}
		spec = again(p, spec)
		if i%2 == 0 {
			spec = w.Attached(t, spec)
			if err := w.Driver.Check(t.Context(), spec); err != nil {
				t.Fatalf("Check after a repeated Attach: %v", err)
			}
		} else {
			spec.Prev = nil // as it is when Attach never finished
		}
		try(t, w.Driver.Detach(t.Context(), spec))
		w.wantText(t, before, p)
		if t.Failed() {
			break
		}
	}
	t.Logf("an Attach takes %s; ends of the killed: %v", takes, moments)
	if moments["killed"] == 0 {
		t.Error("every Attach was over before it was killed: the test tested nothing")
	}
}

// kill starts an Attach and kills it within that time.
func kill(t *testing.T, typ, node string, s driver.Spec, within time.Duration) string {
	t.Helper()
	text, err := json.Marshal(order{typ, node, s.NetNSPath, s.ContainerID, s.IfName, string(s.Conf), s.Prev, s.IPAM != nil})
	try(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envVictim+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "now\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("victim says %q: %v (is Main in TestMain?)", line, err)
	}
	// Any moment will do; this is not waiting for anything.
	<-time.After(rand.N(within))
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
