// Command exec runs a program in a throw-away guest (internal/guest), for
//
//	go test -exec "$(pwd)/bin/braid-guest-exec" ./internal/driver/...
//
// The program sees the host's files but writes to memory, except beside its
// own binary, where go test collects profiles. It gets the arguments, the
// environment and the directory of this command, and this command its output
// and exit code. BRAID_TIER is guest unless it is set.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"braid.dev/braid/internal/guest"
)

// noExit is the exit code when the program did not get to end by itself.
const noExit = 125

func main() {
	memory := flag.Int("mem", 512, "memory of the guest in MiB")
	kernel := flag.String("kernel", string(guest.UML), "kernel of the guest: uml or qemu")
	modules := flag.String("modules", "", "kernel modules to load at boot, separated by commas")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: exec [-kernel uml|qemu] [-mem MiB] [-modules a,b] PROGRAM [ARG…]")
		os.Exit(2)
	}
	// When the reader of the output is gone, the guest still has to be ended.
	signal.Ignore(syscall.SIGPIPE)
	// go test sends SIGQUIT to a test that takes too long.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	code, err := run(ctx, guest.Kernel(*kernel), *memory, *modules, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = noExit
	}
	os.Exit(code)
}

func run(ctx context.Context, kernel guest.Kernel, memory int, modules string, args []string) (int, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	program := args[0]
	if strings.Contains(program, "/") {
		if program, err = filepath.Abs(program); err != nil {
			return 0, err
		}
	}
	c := guest.Config{
		Name:      "test",
		Kernel:    kernel,
		MemoryMiB: memory,
		Modules:   strings.FieldsFunc(modules, func(r rune) bool { return r == ',' }),
	}
	if isTest(args) {
		c.Shares = []guest.Share{{Host: filepath.Dir(program), Guest: filepath.Dir(program)}}
	}
	return guest.RunOnce(ctx, c, guest.Cmd{
		Args:   append([]string{program}, args[1:]...),
		Env:    environment(os.Environ()),
		Dir:    cwd,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	})
}

// isTest tells a call of go test, which keeps the binary in a directory of its
// own, from a call by hand, of a program in /usr/bin maybe.
func isTest(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-test.") })
}

// environment is what the program inherits.
func environment(env []string) []string {
	tier := func(kv string) bool { return strings.HasPrefix(kv, "BRAID_TIER=") }
	if !slices.ContainsFunc(env, tier) {
		env = append(slices.Clone(env), "BRAID_TIER=guest")
	}
	return env
}
