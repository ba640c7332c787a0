// Command observe prints what go-cni, the library in containerd, loads from a
// conf dir: observe DIR MAX_CONF_NUM BIN_DIR. Its go.mod pins the versions.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/go-cni"
)

type network struct {
	IfName, Name string
}

func main() {
	limit, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c, err := cni.New(cni.WithPluginConfDir(os.Args[1]), cni.WithPluginMaxConfNum(limit), cni.WithPluginDir([]string{os.Args[3]}))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var out struct {
		Networks []network
		Failed   bool
	}
	out.Failed = c.Load(cni.WithDefaultConf) != nil
	for _, n := range c.GetConfig().Networks {
		out.Networks = append(out.Networks, network{IfName: n.IFName, Name: n.Config.Name})
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
