package explain_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid.dev/braid/internal/confdir/explain"
	"braid.dev/braid/internal/cri"
	"braid.dev/braid/internal/lab"
)

// TestClusterExplanationsAgreeWithContainerd explains directories and compares
// each with what a running containerd loaded from it. One containerd serves all
// directories of one max_conf_num, so that its reloading is tested as well.
func TestClusterExplanationsAgreeWithContainerd(t *testing.T) {
	if os.Getenv("BRAID_TIER") != "cluster" {
		t.Skip("needs BRAID_TIER=cluster: it builds and starts containerd")
	}
	built, err := lab.Build(t.Context(), lab.BuildConfig{Only: []string{"containerd"}})
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, limit := range []int{1, 2, 3, 0} {
		t.Run(fmt.Sprintf("max_conf_num %d", limit), func(t *testing.T) {
			c := startContainerd(t, built["containerd"], limit)
			for _, d := range slices.Concat(traps(), generated(30, uint64(limit))) {
				t.Run(d.name, func(t *testing.T) {
					c.empty(t)
					d.fill(t, c.confDir)
					// What containerd overlooks is not the subject here: any
					// write makes it read the directory again.
					c.write(t, "nudge", "x")
					c.agrees(t)
				})
				compared++
			}
			c.overlooks(t)
		})
	}
	if compared < 40 {
		t.Errorf("only %d directories were compared", compared)
	}
	t.Logf("%d directories", compared)
}

// containerd is a running one whose conf dir belongs to the test.
type containerd struct {
	confDir, endpoint string
	limit             int
	barriers          int
	ignored           chan string // names of the events that it has ignored
}

func startContainerd(t *testing.T, program string, limit int) *containerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	c := &containerd{
		confDir: filepath.Join(dir, "conf", "net.d"), endpoint: "unix://" + filepath.Join(dir, "c.sock"),
		limit: limit, ignored: make(chan string, 4096),
	}
	must(t, os.MkdirAll(c.confDir, 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	config := filepath.Join(dir, "config.toml")
	put(t, config, fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = %[3]q
[debug]
  level = "debug"
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[4]q]
  conf_dir = %[5]q
  max_conf_num = %[6]d
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "c.sock"), filepath.Join(dir, "bin"), c.confDir, limit))
	cmd := exec.Command(program, "--config", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	tail := make(chan string, 1)
	go c.follow(stderr, tail)
	t.Cleanup(func() {
		must(t, cmd.Process.Kill())
		last := <-tail
		cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("containerd says\n%s", last)
		}
	})
	c.await(t)
	return c
}

// follow reads containerd's log to its end: it hands on which events of the
// conf dir were ignored, and keeps the last lines.
func (c *containerd) follow(log io.Reader, tail chan<- string) {
	var last []string
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		last = append(last[max(0, len(last)-40):], lines.Text())
		if _, event, ok := strings.Cut(lines.Text(), "ignore event from cni conf dir: "); ok {
			c.ignored <- event
		}
	}
	tail <- strings.Join(last, "\n")
}

// await waits until the CRI answers. containerd's socket is there earlier, and
// there is no event for it, so this polls.
func (c *containerd) await(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := cri.GetStatus(ctx, c.endpoint)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("containerd does not answer: %v", err)
		case <-tick.C:
		}
	}
}

func (c *containerd) write(t *testing.T, name, data string) {
	t.Helper()
	put(t, filepath.Join(c.confDir, name), data)
}

// empty removes everything but the directory itself, without which containerd
// ends.
func (c *containerd) empty(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(c.confDir)
	must(t, err)
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(c.confDir, e.Name())))
	}
}

// settle waits until containerd has handled every event so far. It handles one
// after the other and says in its log which it ignores, as the creation of a
// directory, which changes nothing else.
func (c *containerd) settle(t *testing.T) {
	t.Helper()
	c.barriers++
	name := fmt.Sprintf("barrier-%d", c.barriers)
	must(t, os.Mkdir(filepath.Join(c.confDir, name), 0o755))
	limit := time.After(30 * time.Second)
	for {
		select {
		case event := <-c.ignored:
			// The log escapes the quotes of the event.
			if strings.Contains(event, "CREATE") && strings.Contains(event, "/"+name+`\"`) {
				return
			}
		case <-limit:
			t.Fatalf("containerd has not seen %s", name)
		}
	}
}

// asked is what containerd reports, and the explanation with it.
func (c *containerd) asked(t *testing.T) (explain.Seen, explain.Explanation) {
	t.Helper()
	c.settle(t)
	status, err := cri.GetStatus(t.Context(), c.endpoint)
	must(t, err)
	seen, err := explain.ParseSeen(status.Info)
	must(t, err)
	if seen.ConfDir != c.confDir || seen.MaxConfNum != c.limit {
		t.Fatalf("containerd has %s and max_conf_num %d", seen.ConfDir, seen.MaxConfNum)
	}
	seen.Dir = c.confDir
	runtime, err := explain.RuntimeOf(status.Name, status.Version)
	must(t, err)
	files, err := explain.ReadDir(c.confDir)
	must(t, err)
	return seen, explain.Explain(explain.Input{Files: files, Runtime: runtime, MaxConfNum: c.limit, Seen: &seen})
}

// agrees compares the explanation with containerd's networks one by one, and
// lets it compare the plugins itself.
func (c *containerd) agrees(t *testing.T) {
	t.Helper()
	seen, have := c.asked(t)
	var want []string
	for _, n := range seen.Networks {
		want = append(want, n.IfName+" "+n.Name)
	}
	var explained []string
	for _, n := range have.Networks {
		explained = append(explained, n.IfName+" "+n.Name)
	}
	if !slices.Equal(explained, want) {
		t.Errorf("explained %q, containerd has %q (%s)", explained, want, seen.LoadError)
	}
	if (seen.LoadError == "") != (have.Error == "") {
		t.Errorf("explained error %q, containerd says %q", have.Error, seen.LoadError)
	}
	for _, f := range have.Findings {
		if f.Code == explain.RuntimeDiffers {
			t.Errorf("%s: %s", f.Code, f.Message)
		}
	}
	// The file that is blamed is that which containerd blames.
	for _, i := range have.Ignored {
		if strings.HasPrefix(i.Reason, "broken: ") && !strings.Contains(seen.LoadError, i.File) && !brokenInside(i.Reason) {
			t.Errorf("explained that %s is %s, containerd says %q", i.File, i.Reason, seen.LoadError)
		}
	}
}

// brokenInside tells whether the blame lies on another file than the list.
func brokenInside(reason string) bool { return strings.Contains(reason, ".conf: ") }

// overlooks shows the deviation of containerd from its directory, and that the
// explanation finds it.
func (c *containerd) overlooks(t *testing.T) {
	codes := func() (out []explain.Code) {
		_, e := c.asked(t)
		for _, f := range e.Findings {
			out = append(out, f.Code)
		}
		return out
	}
	differs := func(when string, want bool) {
		t.Helper()
		if have := codes(); slices.Contains(have, explain.RuntimeDiffers) != want {
			t.Errorf("%s: findings %v", when, have)
		}
	}
	c.empty(t)
	c.write(t, "10-old.conflist", list("old", "ptp"))
	differs("at first", false)
	outside := filepath.Join(filepath.Dir(c.confDir), "outside")
	put(t, outside, list("new", "ptp"))
	must(t, os.Rename(outside, filepath.Join(c.confDir, "05-new.conflist")))
	differs("a file was moved in", true)
	must(t, os.Chtimes(filepath.Join(c.confDir, "10-old.conflist"), time.Now(), time.Now()))
	differs("a file was touched", true)
	c.write(t, "README", "anything")
	differs("a file was written", false)
}
