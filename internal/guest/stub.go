package guest

import (
	"context"
	"errors"
	"path/filepath"
)

type state struct {
	Name string
	PID  int
}

var errStub = errors.New("not built yet")

func start(context.Context, Config) (*Guest, error)                      { return nil, errStub }
func open(string) (*Guest, error)                                        { return nil, errStub }
func runOnce(context.Context, Config, Cmd) (int, error)                  { return 0, errStub }
func (g *Guest) run(context.Context, Cmd) (int, error)                   { return 0, errStub }
func (g *Guest) output(context.Context, []string) (string, error)        { return "", errStub }
func (g *Guest) writeFile(context.Context, string, []byte, uint32) error { return errStub }
func (g *Guest) startDaemon(context.Context, Daemon) error               { return errStub }
func (g *Guest) stopDaemon(context.Context, string) error                { return errStub }
func (g *Guest) signalDaemon(context.Context, string, int) error         { return errStub }
func (g *Guest) daemons(context.Context) ([]DaemonStatus, error)         { return nil, errStub }
func (g *Guest) running() bool                                           { return false }
func (g *Guest) stop(context.Context) error                              { return errStub }
func daemonLog(dir, name string) string                                  { return filepath.Join(dir, "log", name+".log") }
func consoleLog(dir string) string                                       { return filepath.Join(dir, "console.log") }
