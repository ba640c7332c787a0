package migrate

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"braid.dev/braid/api/v1alpha1"
)

func TestAllNodesMoveAndComeBack(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		c := newCluster(t, nodes)
		c.runUntil(v1alpha1.PhaseDone)
		c.wantAllOn(v1alpha1.Target)
		if nodes == 3 && c.m.Status.Nodes[0].Since.Time.Before(c.m.Status.Nodes[2].Since.Time) {
			t.Error("the leader's node did not move last")
		}
		c.change(func(s *v1alpha1.MigrationSpec) { s.Goal = v1alpha1.Source })
		c.runUntil(v1alpha1.PhaseMoving)
		c.runUntil(v1alpha1.PhaseDone)
		c.wantAllOn(v1alpha1.Source)
		c.change(func(s *v1alpha1.MigrationSpec) { s.Clean = true })
		c.runUntil(v1alpha1.PhaseClean)
	}
}

func TestOneNodeAtATimeAndZonesDoNotMix(t *testing.T) {
	c := newCluster(t, 6)
	c.m.Spec.Strategy.Batch = 2
	for i := range c.nodes {
		c.nodes[i].Labels[corev1.LabelTopologyZone] = []string{"a", "b"}[i%2]
	}
	most := 0
	c.run("Done", func() bool {
		zones := map[string]bool{}
		moving := 0
		for _, n := range c.m.Status.Nodes {
			if !atRest(n) {
				moving++
				zones[zone(*c.node(n.Name))] = true
			}
		}
		most = max(most, moving)
		if len(zones) > 1 || moving > 2 {
			t.Fatalf("too many at once:\n%s", c.tell())
		}
		return c.m.Status.Phase == v1alpha1.PhaseDone
	})
	if most != 2 {
		t.Errorf("%d nodes moved at once, not 2", most)
	}
}

func TestAProbeThatFailsBeforeTheMoveTouchesNoPod(t *testing.T) {
	c := newCluster(t, 3)
	c.broken = v1alpha1.Target
	before := map[string]string{}
	for _, p := range c.pods {
		before[p.Name] = string(p.UID) + p.Status.PodIP
	}
	c.runUntil(v1alpha1.PhaseStopped)
	c.run("at rest", func() bool { return c.m.Status.Nodes[1].Step == v1alpha1.StepPending })
	for _, p := range c.pods {
		if !isProbe(p) && before[p.Name] != string(p.UID)+p.Status.PodIP {
			t.Errorf("%s was touched", p.Name)
		}
	}
	if !strings.Contains(c.m.Status.Message, "probes failed at step Try: old pod on node1 → new pod on node2") {
		t.Errorf("message %q", c.m.Status.Message)
	}
	c.broken = ""
	c.change(func(s *v1alpha1.MigrationSpec) { s.Resumes++ })
	c.run("Done after a resume", func() bool { return c.m.Status.Phase == v1alpha1.PhaseDone })
	c.wantAllOn(v1alpha1.Target)
}

func TestAProbeThatFailsAfterTheMoveSendsTheNodeBack(t *testing.T) {
	c := newCluster(t, 3)
	c.run("swapped", func() bool { return c.m.Status.Nodes[1].Step == v1alpha1.StepSwap })
	c.broken = v1alpha1.Target
	c.run("stopped at rest", func() bool {
		n := c.m.Status.Nodes[1]
		return c.m.Status.Phase == v1alpha1.PhaseStopped && n.On == v1alpha1.Source && atRest(n)
	})
	for _, p := range c.pods {
		if p.Spec.NodeName == "node2" && !isProbe(p) && SideOf(c.m.Spec, p.Status.PodIP) != v1alpha1.Source {
			t.Errorf("%s has %s", p.Name, p.Status.PodIP)
		}
	}
}

func TestABudgetThatBlocksStopsWithItsName(t *testing.T) {
	c := newCluster(t, 3)
	c.blocked["db-node2"] = true
	c.runUntil(v1alpha1.PhaseStopped)
	if m := c.m.Status.Message; !strings.Contains(m, "db-node2 to be evicted (budget)") || !strings.Contains(m, "10m") {
		t.Errorf("message %q", m)
	}
	c.run("open again", func() bool { return atRest(c.m.Status.Nodes[1]) && !c.node("node2").Spec.Unschedulable })
	delete(c.blocked, "db-node2")
	c.change(func(s *v1alpha1.MigrationSpec) { s.Resumes++ })
	c.run("Done after a resume", func() bool { return c.m.Status.Phase == v1alpha1.PhaseDone })
	c.wantAllOn(v1alpha1.Target)
}

// While nobody could act, as without the API server, no step's time runs out.
func TestStepsGetTheirTimeAgainAfterAnOutage(t *testing.T) {
	c := newCluster(t, 3)
	c.blocked["db-node2"] = true
	c.run("evicting", func() bool { return c.m.Status.Nodes[1].Step == v1alpha1.StepEvict })
	c.now = c.now.Add(time.Hour)
	c.agents() // they are heard of again at once
	c.anew = true
	c.lead(all)
	c.anew = false
	clear(c.blocked)
	c.run("Done", func() bool {
		if c.m.Status.Phase == v1alpha1.PhaseStopped {
			t.Fatal(c.tell())
		}
		return c.m.Status.Phase == v1alpha1.PhaseDone
	})
}

// Behind a closed gate a pod that lost its sandbox gets no other, and its budget
// would keep it there.
func TestPodsThatARebootTookDownDoNotHoldUpTheirNode(t *testing.T) {
	c := newCluster(t, 3)
	c.blocked["db-node2"], c.blocked["web-node2"] = true, true
	c.run("evicting", func() bool { return c.m.Status.Nodes[1].Step == v1alpha1.StepEvict })
	c.reboot("node2")
	delete(c.down, "node2")
	c.run("Done", func() bool {
		if c.m.Status.Phase == v1alpha1.PhaseStopped && strings.Contains(c.m.Status.Message, "node2") {
			t.Fatal(c.tell())
		}
		if c.m.Status.Nodes[1].Step == v1alpha1.StepDone {
			clear(c.blocked)
		}
		return c.m.Status.Phase == v1alpha1.PhaseDone
	})
}

func TestPausedNothingGoesOn(t *testing.T) {
	c := newCluster(t, 3)
	c.run("closed", func() bool { return c.m.Status.Nodes[1].Step == v1alpha1.StepTry })
	c.change(func(s *v1alpha1.MigrationSpec) { s.Paused = true })
	c.runUntil(v1alpha1.PhasePaused)
	for range 100 {
		c.now = c.now.Add(time.Minute)
		c.lead(all)
		c.agents()
		c.kubelets()
	}
	if n := c.m.Status.Nodes[1]; n.Step != v1alpha1.StepTry || n.Back {
		t.Errorf("it went on:\n%s", c.tell())
	}
	c.change(func(s *v1alpha1.MigrationSpec) { s.Paused = false })
	c.run("Done after the pause", func() bool { return c.m.Status.Phase == v1alpha1.PhaseDone })
}

func TestAbortBringsNodesHomeAndLeavesTheOthers(t *testing.T) {
	c := newCluster(t, 3)
	c.run("node2 done, node3 moving", func() bool {
		return c.m.Status.Nodes[1].On == v1alpha1.Target && atRest(c.m.Status.Nodes[1]) && c.m.Status.Nodes[2].Step == v1alpha1.StepMove
	})
	c.change(func(s *v1alpha1.MigrationSpec) { s.Goal = v1alpha1.Stay })
	c.runUntil(v1alpha1.PhaseDone)
	for i, want := range []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target, v1alpha1.Source} {
		if n := c.m.Status.Nodes[i]; n.On != want || !atRest(n) {
			t.Errorf("%s is on %s", n.Name, n.On)
		}
		if part := c.parts[c.m.Status.Nodes[i].Name]; part.Status.Runtime != runtimeOf(want) {
			t.Errorf("%s: the runtime is %s", part.Name, part.Status.Runtime)
		}
	}
}

func TestRollbackOfOneNode(t *testing.T) {
	c := newCluster(t, 3)
	c.runUntil(v1alpha1.PhaseDone)
	c.change(func(s *v1alpha1.MigrationSpec) { s.Hold = []string{"node3"} })
	c.run("node3 back", func() bool {
		return c.m.Status.Nodes[2].On == v1alpha1.Source && c.m.Status.Phase == v1alpha1.PhaseDone
	})
	if c.m.Status.Nodes[1].On != v1alpha1.Target {
		t.Error("node2 moved, too")
	}
}

func TestANodeThatJoinsInTheMiddleMovesToo(t *testing.T) {
	c := newCluster(t, 3)
	c.run("half way", func() bool { return c.m.Status.Nodes[1].On == v1alpha1.Target })
	c.join("node4")
	c.create("late-1", "node4", "ReplicaSet")
	c.run("Done", func() bool { return c.m.Status.Phase == v1alpha1.PhaseDone && len(c.m.Status.Nodes) == 4 })
	c.wantAllOn(v1alpha1.Target)
}

// TestItIsNotDoneWhileANodeIsExemptFromNAT: who reads that it is done may look.
func TestItIsNotDoneWhileANodeIsExemptFromNAT(t *testing.T) {
	c := newCluster(t, 2)
	c.m.Spec.PreserveSource, c.exempt = true, "node2"
	c.run("an exemption to be removed", func() bool {
		if c.m.Status.Phase == v1alpha1.PhaseDone {
			t.Fatal("it is done")
		}
		return strings.Contains(c.m.Status.Message, "node2 removes the exemption from NAT")
	})
	c.exempt = ""
	c.runUntil(v1alpha1.PhaseDone)
	c.wantAllOn(v1alpha1.Target)
}

func TestAPersonsCordonStays(t *testing.T) {
	c := newCluster(t, 3)
	c.node("node2").Spec.Unschedulable = true
	c.runUntil(v1alpha1.PhaseDone)
	if n := c.node("node2"); !n.Spec.Unschedulable || c.m.Status.Nodes[1].On != v1alpha1.Target {
		t.Errorf("unschedulable %v:\n%s", n.Spec.Unschedulable, c.tell())
	}
}

// TestWhateverIsLostItEndsWhole has leaders lost in the middle of decisions,
// nodes rebooted, datapaths that break for a while, budgets that block and
// people who change their mind, at random moments; when peace returns, the
// cluster is whole on one side.
func TestWhateverIsLostItEndsWhole(t *testing.T) {
	for seed := range uint64(200) {
		c := newCluster(t, 1+int(seed%4))
		r := rand.New(rand.NewPCG(seed, 4))
		c.m.Spec.PreserveSource = seed%3 == 0
		c.m.Spec.Strategy.Batch = 1 + int(seed%2)
		for range 300 {
			c.now = c.now.Add(time.Duration(r.IntN(20)) * time.Second)
			c.lead(r.IntN(12))
			if r.IntN(3) > 0 {
				c.agents()
			}
			if r.IntN(3) > 0 {
				c.kubelets()
			}
			c.misfortune(r)
		}
		c.down, c.blocked, c.broken = map[string]bool{}, map[string]bool{}, ""
		goal := []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target}[seed%2]
		c.change(func(s *v1alpha1.MigrationSpec) { s.Goal, s.Paused, s.Hold, s.Resumes = goal, false, nil, s.Resumes+1 })
		c.run("whole", func() bool {
			if c.m.Status.Phase == v1alpha1.PhaseStopped {
				c.change(func(s *v1alpha1.MigrationSpec) { s.Resumes++ })
			}
			return c.m.Status.Phase == v1alpha1.PhaseDone && c.m.Status.Stopped == 0
		})
		c.wantAllOn(goal)
		for _, part := range c.parts {
			if part.Spec.PreserveSource || part.Status.PreserveSource {
				t.Errorf("seed %d: the exemption from NAT is still there", seed)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d:\n%s\n%s", seed, c.tell(), strings.Join(c.events, "\n"))
		}
	}
}

// misfortune is what may happen between two steps of a migration.
func (c *cluster) misfortune(r *rand.Rand) {
	node := c.nodes[r.IntN(len(c.nodes))].Name
	switch r.IntN(40) {
	case 0:
		c.reboot(node)
	case 1, 2, 3:
		delete(c.down, node)
	case 4:
		c.broken = []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target}[r.IntN(2)]
	case 5, 6:
		c.broken = ""
	case 7:
		c.blocked["db-"+node] = true
	case 8:
		delete(c.blocked, "db-"+node)
	case 9:
		c.change(func(s *v1alpha1.MigrationSpec) {
			s.Goal = []v1alpha1.Side{v1alpha1.Source, v1alpha1.Target, v1alpha1.Stay}[r.IntN(3)]
		})
	case 10:
		c.change(func(s *v1alpha1.MigrationSpec) { s.Paused = !s.Paused })
	case 11:
		c.change(func(s *v1alpha1.MigrationSpec) { s.Hold = slices.Clone([][]string{nil, {node}}[r.IntN(2)]) })
	case 12:
		c.leader = node
	case 13, 14:
		c.change(func(s *v1alpha1.MigrationSpec) { s.Resumes++ })
	}
}
