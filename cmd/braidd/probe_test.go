package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"braid.dev/braid/internal/migrate/probe"
)

// braidd is the program with these arguments, and what it printed.
func braidd(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(ctx)
	return out.String(), err
}

func TestALoadEndsWithTwoWhenRequestsFailed(t *testing.T) {
	web := httptest.NewServer((&probe.Server{Pod: "web-0", Node: "node1"}).Handler())
	defer web.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	good, bad := "good="+web.URL, "bad=tcp://"+gone.Addr().String()
	load := []string{"probe", "load", "--rate", "50", "--duration", "100ms", "--target"}

	out, err := braidd(t.Context(), append(load, good)...)
	if err != nil || !strings.HasPrefix(out, "TARGET ") || !strings.Contains(out, "127.0.0.1 (") {
		t.Errorf("all answered: %v\n%s", err, out)
	}
	out, err = braidd(t.Context(), append(load, good, "--target", bad, "-o", "json")...)
	if code := exitCode(err); code != 2 {
		t.Errorf("exit code %d: %v", code, err)
	}
	var c probe.Counts
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if c.Failed() == 0 || c.Failed() != c.Targets[1].Failed || err.Error() != fmt.Sprintf("%d of %d requests failed", c.Failed(), c.Asked()) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := braidd(t.Context(), append(load, bad, "--allow-failures")...); err != nil || !strings.Contains(out, "connection refused") {
		t.Errorf("failures are allowed: %v\n%s", err, out)
	}
	if code := exitCode(errors.New("anything else")); code != 1 {
		t.Errorf("exit code of anything else: %d", code)
	}
}

func TestALoadWithoutSenseIsRefused(t *testing.T) {
	for _, args := range [][]string{
		{}, {"--target", "web"}, {"--target", "a=http://b", "--target", "a=http://c"}, {"--target", "a=http://b", "--rate", "0"},
		{"--target", "a=http://b", "-o", "yaml"}, {"--target", "a=http://b", "more"},
	} {
		if out, err := braidd(t.Context(), append([]string{"probe", "load", "--duration", "1ms"}, args...)...); err == nil || exitCode(err) != 1 {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// A load that is told to end, as by SIGTERM, prints what it has counted.
func TestALoadThatIsToldToEndPrintsItsCounts(t *testing.T) {
	ctx, tell := context.WithCancel(t.Context())
	web := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { tell() }))
	defer web.Close()
	out, err := braidd(ctx, "probe", "load", "--rate", "100", "-o", "json", "--target", "web="+web.URL)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := probe.ParseCounts([]byte(out)); err != nil || c.Asked() == 0 || c.Failed() != 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTheProbeServesUntilItIsToldToEnd(t *testing.T) {
	ctx, tell := context.WithCancel(t.Context())
	tell()
	if out, err := braidd(ctx, "probe", "--listen", "127.0.0.1:0", "--grace", "0s"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := braidd(t.Context(), "probe", "--listen", "127.0.0.1:no-such-port"); err == nil {
		t.Errorf("it listened: %s", out)
	}
}
