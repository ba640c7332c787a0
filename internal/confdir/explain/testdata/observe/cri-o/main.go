// Command observe prints what ocicni, the library in CRI-O, takes as the
// default network of a conf dir: observe DIR MAX_CONF_NUM BIN_DIR, of which the
// second is not used.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/cri-o/ocicni/pkg/ocicni"
	"github.com/sirupsen/logrus"
)

type network struct {
	IfName, Name string
}

func main() {
	logrus.SetOutput(io.Discard)
	c, err := ocicni.InitCNINoInotify("", os.Args[1], os.TempDir(), os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var out struct {
		Networks []network
		Failed   bool
	}
	out.Failed = c.Status() != nil
	if name := c.GetDefaultNetworkName(); name != "" {
		out.Networks = []network{{IfName: "eth0", Name: name}}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
