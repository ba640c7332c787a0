package exec

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"braid.dev/braid/internal/driver"
)

// localHost runs programs the way the shim does, in this process.
type localHost struct{ last driver.Program }

func (h *localHost) Exec(ctx context.Context, p driver.Program) ([]byte, error) {
	h.last = p
	for _, dir := range p.Dirs {
		path := filepath.Join(dir, p.Name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, path, p.Args...)
		cmd.Env, cmd.Stdin = append(p.Env, "PATH="+os.Getenv("PATH")), strings.NewReader(string(p.Stdin))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		cmd.WaitDelay = time.Second
		stdout, err := cmd.Output()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return stdout, nil
		case ctx.Err() != nil:
			return stdout, ctx.Err()
		case errors.As(err, &exit):
			return stdout, &driver.ExitError{Program: p.Name, Code: exit.ExitCode(), Stdout: stdout, Stderr: []byte(stderr.String())}
		default:
			return nil, &NotRunError{Err: err}
		}
	}
	return nil, &NotRunError{Err: errors.New(p.Name + ": not found")}
}

// script puts a plugin into a directory of its own and returns it.
func script(t *testing.T, body string) (Plugin, *localHost) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "testplugin"), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return Plugin{Type: "testplugin", Dirs: []string{filepath.Join(dir, "none"), dir}, Timeout: 10 * time.Second}, &localHost{}
}

func spec(h driver.Host, conf string) driver.Spec {
	return driver.Spec{ContainerID: "c1", IfName: "net1", Args: "A=1;B=2", Conf: []byte(conf), Host: h}
}

const conf10 = `{"cniVersion":"1.0.0","name":"n","type":"testplugin"}`

func TestResultsOfEveryVersionAreUnderstood(t *testing.T) {
	for version, result := range map[string]string{
		"0.1.0": `{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.2/24"}}`,
		"0.2.0": `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`,
		"0.3.1": `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}`,
		"0.4.0": `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}`,
		"1.0.0": `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`,
		"1.1.0": `{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}`,
	} {
		unnamed := strings.Replace(result, `"cniVersion":"`+version+`",`, "", 1)
		for _, printed := range []string{result, unnamed} {
			p, h := script(t, "cat >/dev/null; echo '"+printed+"'")
			got, err := p.Attach(context.Background(), spec(h, `{"cniVersion":"`+version+`","name":"n","type":"testplugin"}`))
			if err != nil {
				t.Errorf("%s: %v", printed, err)
				continue
			}
			if got.CNIVersion != "1.1.0" || len(got.IPs) != 1 || got.IPs[0].Address.String() != "10.0.0.2/24" {
				t.Errorf("%s became %+v", printed, got)
			}
		}
	}
}

func TestPluginSeesTheProtocolsEnvironment(t *testing.T) {
	p, h := script(t, `cat >/dev/null; echo '{"cniVersion":"1.0.0"}'`)
	if _, err := p.Attach(context.Background(), spec(h, conf10)); err != nil {
		t.Fatal(err)
	}
	slices.Sort(h.last.Env)
	want := []string{
		"CNI_ARGS=A=1;B=2", "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=net1",
		"CNI_NETNS=", "CNI_PATH=" + strings.Join(p.Dirs, ":"),
	}
	if diff := cmp.Diff(want, h.last.Env); diff != "" {
		t.Error(diff)
	}
	if err := p.Status(context.Background(), h, []byte(conf10)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"CNI_COMMAND=STATUS", "CNI_PATH=" + strings.Join(p.Dirs, ":")}, h.last.Env); diff != "" {
		t.Error(diff)
	}
}

func TestPluginsOwnErrorKeepsItsCode(t *testing.T) {
	p, h := script(t, `cat >/dev/null; echo '{"cniVersion":"1.0.0","code":11,"msg":"busy","details":"wait a little"}'; echo noise >&2; exit 1`)
	err := p.Detach(context.Background(), spec(h, conf10))
	var said *types.Error
	if !errors.As(err, &said) || said.Code != 11 {
		t.Fatalf("Detach = %v", err)
	}
	for _, part := range []string{"testplugin DEL", "busy", "wait a little", "noise"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

func TestRubbishIsQuotedAndBounded(t *testing.T) {
	long := strings.Repeat("rubbish ", 1000)
	for name, body := range map[string]string{
		"text":             "echo '" + long + "'",
		"text and failure": "echo '" + long + "'; exit 3",
		"null":             "echo null",
		"nothing":          "true",
		"failure, silent":  "exit 3",
		"list":             "echo '[]'",
		"null elements":    `echo '{"cniVersion":"0.4.0","ips":[null],"interfaces":[null],"routes":[null]}'`,
		"future version":   `echo '{"cniVersion":"9.0.0"}'`,
		"bad address":      `echo '{"cniVersion":"1.0.0","ips":[{"address":"nowhere"}]}'`,
		"old null route":   `echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[null]}}'`,
		"old empty":        `echo '{"cniVersion":"0.2.0","ip4":{}}'`,
		"bad index":        `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24","interface":3}]}'`,
	} {
		t.Run(name, func(t *testing.T) {
			p, h := script(t, "cat >/dev/null; "+body)
			_, err := p.Attach(context.Background(), spec(h, conf10))
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), "run testplugin ADD: ") || len(err.Error()) > 700 {
				t.Errorf("%d bytes: %v", len(err.Error()), err)
			}
		})
	}
}

func TestMissingPluginIsNamedWithTheDirsSearched(t *testing.T) {
	p := Plugin{Type: "nosuch", Dirs: []string{"/opt/cni/bin", "/usr/lib/cni"}}
	_, err := p.Attach(context.Background(), spec(&localHost{}, conf10))
	var notRun *NotRunError
	if !errors.As(err, &notRun) {
		t.Fatalf("Attach = %v", err)
	}
	for _, part := range []string{"nosuch", "/opt/cni/bin", "/usr/lib/cni"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

func TestHangingPluginIsKilledAndNamed(t *testing.T) {
	p, h := script(t, "exec sleep 1000")
	p.Timeout = 50 * time.Millisecond
	_, err := p.Attach(context.Background(), spec(h, conf10))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "testplugin ADD: it did not end within 50ms") {
		t.Errorf("Attach = %v", err)
	}
}

func TestNobodyConnectedIsAnErrorNotAPanic(t *testing.T) {
	if err := (Plugin{Type: "x"}).Detach(context.Background(), driver.Spec{ContainerID: "c"}); !errors.Is(err, errNoHost) {
		t.Errorf("Detach = %v", err)
	}
}

func TestFailedDelegateIsAskedToCleanUp(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, h := script(t, `cat >/dev/null; echo $CNI_COMMAND >>`+log+`; test $CNI_COMMAND = DEL`)
	if _, err := p.Delegate(spec(h, conf10)).Add(context.Background()); err == nil {
		t.Fatal("Add succeeded")
	}
	got, err := os.ReadFile(log)
	if err != nil || string(got) != "ADD\nDEL\n" {
		t.Errorf("the delegate was asked %q, %v", got, err)
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"0.4.0","interfaces":[{"name":"a"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}`))
	f.Add([]byte(`{"ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[null]},"ip6":null}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","ips":[{"address":"fd00::1/64"}],"dns":null}`))
	f.Fuzz(func(t *testing.T, stdout []byte) {
		for _, conf := range []string{conf10, `{"cniVersion":"0.2.0"}`, `{}`} {
			r, err := parseResult(stdout, []byte(conf))
			if err != nil {
				continue
			}
			if _, err := json.Marshal(r); err != nil {
				t.Fatalf("%s cannot be stored: %v", stdout, err)
			}
		}
	})
}
