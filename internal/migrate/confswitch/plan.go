package confswitch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"

	"braid.dev/braid/api/v1alpha1"
	"braid.dev/braid/internal/confdir"
	"braid.dev/braid/internal/plan"
)

// AsideSuffix is what the name of a configuration ends with that is set aside.
// No runtime loads such a file.
const AsideSuffix = ".braid-migrate"

// World is what a plan is made from.
type World struct {
	Migration string
	// Files are what a runtime would load of the conf dir.
	Files []confdir.File
	// Aside are the names of configurations that are set aside, without what marks
	// them.
	Aside []string
	// Guarded says that the gate cannot be renamed by Cilium.
	Guarded bool
	// Source and Target are the two networks' own configurations on this node.
	// One without data is not known.
	Source, Target Conf
	// Probes, Message and CacheDir are those of Config.
	Probes, Message, CacheDir string
}

// Conf is a network's own configuration.
type Conf struct {
	File string
	Data []byte
	Mode fs.FileMode
}

// Op is one step. After each of them the runtime has a configuration to load.
type Op struct {
	Do   Kind
	File string
	// Data and Mode are for Write.
	Data []byte
	Mode fs.FileMode
}

// Kind is what a step does to its file.
type Kind string

const (
	// Guard keeps Cilium from renaming it, Unguard undoes that.
	Guard   Kind = "guard"
	Unguard Kind = "unguard"
	// Write makes or replaces it, SetAside renames it, Remove removes it.
	Write    Kind = "write"
	SetAside Kind = "set aside"
	Remove   Kind = "remove"
)

func (o Op) String() string { return string(o.Do) + " " + o.File }

// States are all that a runtime can be set to, in the order of a migration and
// its way back.
func States() []v1alpha1.RuntimeState {
	return []v1alpha1.RuntimeState{
		v1alpha1.RuntimeSource, v1alpha1.RuntimeClosedToTarget, v1alpha1.RuntimeOpenToTarget,
		v1alpha1.RuntimeTarget, v1alpha1.RuntimeClosedToSource, v1alpha1.RuntimeOpenToSource,
	}
}

// IsGate says that a gate stands in the state.
func IsGate(s v1alpha1.RuntimeState) bool {
	return s != v1alpha1.RuntimeSource && s != v1alpha1.RuntimeTarget && s != ""
}

// sideOf is the network that is to come, or has come, in a state.
func sideOf(s v1alpha1.RuntimeState) v1alpha1.Side {
	switch s {
	case v1alpha1.RuntimeTarget, v1alpha1.RuntimeClosedToTarget, v1alpha1.RuntimeOpenToTarget:
		return v1alpha1.Target
	}
	return v1alpha1.Source
}

func (w World) conf(s v1alpha1.Side) Conf {
	if s == v1alpha1.Target {
		return w.Target
	}
	return w.Source
}

// Plan says what is to be done to a conf dir for a state; nothing when it is in
// that state. Interrupted anywhere, a new plan ends in the same.
//
// Where Braid is the node's CNI, its own configuration stays, the gate leads to
// it, and it finds the network that is to come as its default network behind it.
func Plan(w World, want v1alpha1.RuntimeState) ([]Op, error) {
	if !slices.Contains(States(), want) {
		return nil, fmt.Errorf("there is no state %q", want)
	}
	goal, other := w.conf(sideOf(want)), w.conf(sideOf(want).Other())
	if len(goal.Data) == 0 {
		return nil, fmt.Errorf("the network that is wanted has no configuration on this node: no %s, and none in the Migration", goal.File)
	}
	if _, err := plan.ParseNetwork(goal.Data, ""); err != nil {
		return nil, fmt.Errorf("%s: %w", goal.File, err)
	}
	first := goal.File
	if IsGate(want) {
		first = confdir.GateFile
	}
	if err := w.nothingBefore(first); err != nil {
		return nil, err
	}
	if !IsGate(want) {
		ops := append(w.planConfs(goal, other, true), w.planNoGate()...)
		if slices.Contains(w.Aside, goal.File) && goal.File != other.File {
			ops = append(ops, Op{Do: Remove, File: goal.File + AsideSuffix}) // it is back
		}
		return ops, nil
	}
	data, err := w.gate(want)
	if err != nil {
		return nil, err
	}
	var ops []Op
	if !w.Guarded {
		ops = append(ops, Op{Do: Guard, File: confdir.GateFile})
	}
	if have, ok := w.file(confdir.GateFile); !ok || !bytes.Equal(have.Data, data) {
		ops = append(ops, Op{Do: Write, File: confdir.GateFile, Data: data, Mode: 0o600})
	}
	return append(ops, w.planConfs(goal, other, w.braid())...), nil
}

// planConfs brings the network that is wanted, if it is to be loadable, before
// it takes the other one away.
func (w World) planConfs(goal, other Conf, loadable bool) []Op {
	var ops []Op
	have, exists := w.file(goal.File)
	switch {
	case loadable && (!exists || !w.is(goal, have)):
		ops = append(ops, Op{Do: Write, File: goal.File, Data: goal.Data, Mode: goal.Mode})
	case !loadable && exists:
		ops = append(ops, Op{Do: SetAside, File: goal.File})
	}
	if _, exists := w.file(other.File); exists && other.File != goal.File {
		ops = append(ops, Op{Do: SetAside, File: other.File})
	}
	return ops
}

func (w World) planNoGate() (ops []Op) {
	if _, ok := w.file(confdir.GateFile); ok {
		ops = append(ops, Op{Do: Remove, File: confdir.GateFile})
	}
	if w.Guarded {
		ops = append(ops, Op{Do: Unguard, File: confdir.GateFile})
	}
	return ops
}

func (w World) file(name string) (confdir.File, bool) {
	for _, f := range w.Files {
		if f.Name == name {
			return f, true
		}
	}
	return confdir.File{}, false
}

// braid says that Braid is the node's CNI.
func (w World) braid() bool {
	_, ok := w.file(confdir.OwnFile)
	return ok
}

// is tells whether a file is a network's own. Its agent may have written another
// version of it, which it would write again; where both networks use one file
// name, only the text itself tells them apart.
func (w World) is(c Conf, f confdir.File) bool {
	if f.Name != c.File || f.Err != nil {
		return false
	}
	if sameJSON(f.Data, c.Data) {
		return true
	}
	have, err := plan.ParseNetwork(f.Data, "")
	if err != nil || w.Source.File == w.Target.File {
		return false
	}
	own, err := plan.ParseNetwork(c.Data, "")
	return err == nil && own.Name == have.Name
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// nothingBefore refuses files that a runtime would load instead: which they are
// nobody told us.
func (w World) nothingBefore(first string) error {
	var errs []error
	for _, f := range w.Files {
		switch f.Name {
		case confdir.OwnFile, confdir.GateFile, w.Source.File, w.Target.File:
		default:
			if f.Name < first {
				errs = append(errs, fmt.Errorf("%s sorts before %s, the runtime would load it instead: it must be renamed or removed first", f.Name, first))
			}
		}
	}
	return errors.Join(errs...)
}

// state tells which state the files are.
func (w World) state() (v1alpha1.RuntimeState, error) {
	files := slices.DeleteFunc(slices.Clone(w.Files), func(f confdir.File) bool { return f.Name == confdir.OwnFile })
	if len(files) == 0 {
		return "", errors.New("there is no configuration")
	}
	first := slices.MinFunc(files, func(a, b confdir.File) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	if first.Name == confdir.GateFile {
		g, err := parseGate(first.Data)
		if err != nil {
			return "", err
		}
		if g.Migration != w.Migration {
			return "", fmt.Errorf("%s is of the migration %q", first.Name, g.Migration)
		}
		return g.State, nil
	}
	if w.Source.File == w.Target.File && first.Name == w.Target.File {
		if sameJSON(first.Data, w.Target.Data) {
			return v1alpha1.RuntimeTarget, nil
		}
		return v1alpha1.RuntimeSource, nil
	}
	switch first.Name {
	case w.Source.File:
		return v1alpha1.RuntimeSource, nil
	case w.Target.File:
		return v1alpha1.RuntimeTarget, nil
	}
	return "", fmt.Errorf("the first configuration is %s, which is neither %s nor %s", first.Name, w.Source.File, w.Target.File)
}
