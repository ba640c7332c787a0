package kube

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// standing is a daemon that stands for leader until it is told to stop.
type standing struct {
	node  string
	began chan time.Time
	ended chan time.Time
	stop  func()
}

func stand(t *testing.T, m *Migrations, node string) *standing {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	d := &standing{node: node, began: make(chan time.Time, 10), ended: make(chan time.Time, 10)}
	d.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		m.Lead(ctx, func(ctx context.Context) {
			d.began <- time.Now()
			<-ctx.Done()
			d.ended <- time.Now()
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("Lead of %s does not end with its context", node)
		}
	})
	return d
}

func at(t *testing.T, what string, limit time.Duration, c <-chan time.Time) time.Time {
	t.Helper()
	select {
	case moment := <-c:
		return moment
	case <-time.After(limit):
		t.Fatalf("%s: not within %v", what, limit)
		return time.Time{}
	}
}

func never(t *testing.T, what string, c <-chan time.Time) {
	t.Helper()
	select {
	case <-c:
		t.Error(what)
	default:
	}
}

// freeLease has nobody lead, whatever a test before has left.
func (s *apiServer) freeLease(t *testing.T) {
	t.Helper()
	err := s.admin.CoordinationV1().Leases(leaseNamespace).Delete(t.Context(), leaseName, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func TestClusterALeaderThatEndsHandsOverAtOnce(t *testing.T) {
	s := migrating(t)
	s.freeLease(t)
	m := s.migrations(t, "hand-1")
	first := stand(t, m, "hand-1")
	at(t, "the first daemon leads", 20*time.Second, first.began)
	second := stand(t, s.migrations(t, "hand-2"), "hand-2")
	if leader, err := m.Leader(t.Context()); err != nil || leader != "hand-1" {
		t.Errorf("the leader is %q, %v", leader, err)
	}
	never(t, "two daemons lead", second.began)
	first.stop()
	end := at(t, "the first daemon's lead ends", time.Second, first.ended)
	begun := at(t, "the second daemon leads", leaseDuration, second.began)
	if begun.Before(end) {
		t.Errorf("the second led %v before the first had ended", end.Sub(begun))
	}
	// It looks every retryPeriod, spread by up to 1.2 times of that.
	if gap := begun.Sub(end); gap > 4*retryPeriod {
		t.Errorf("nobody led for %v", gap)
	}
	if leader, err := m.Leader(t.Context()); err != nil || leader != "hand-2" {
		t.Errorf("the leader is %q, %v", leader, err)
	}
}

// TestClusterALeaderIsWaitedForBeforeItsLeaseIsGivenUp: what it was doing when
// it was told to end must not go on beside the next one.
func TestClusterALeaderIsWaitedForBeforeItsLeaseIsGivenUp(t *testing.T) {
	s := migrating(t)
	s.freeLease(t)
	m := s.migrations(t, "wait-1")
	ctx, cancel := context.WithCancel(t.Context())
	began, finish, done := make(chan time.Time, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		m.Lead(ctx, func(ctx context.Context) {
			began <- time.Now()
			<-ctx.Done()
			<-finish
		})
	}()
	at(t, "it leads", 20*time.Second, began)
	cancelled := time.Now()
	cancel()
	renewed := func() time.Time {
		lease, err := s.admin.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if holder := *lease.Spec.HolderIdentity; !strings.HasPrefix(holder, "wait-1_") {
			t.Fatalf("the lease is %q's while its leader has not ended", holder)
		}
		return lease.Spec.RenewTime.Time
	}
	// It is renewed on while its leader is waited for.
	eventually(t, "the lease is renewed", 3*retryPeriod, func() error {
		if last := renewed(); last.Before(cancelled.Add(retryPeriod / 2)) {
			return fmt.Errorf("it was renewed last at %v", last)
		}
		return nil
	})
	close(finish)
	<-done
	if leader, err := m.Leader(t.Context()); err != nil || leader != "" {
		t.Errorf("the leader is %q, %v", leader, err)
	}
}

const childVar = "BRAID_TEST_LEADER"

// TestLeaderChild is the other process of the test below.
func TestLeaderChild(t *testing.T) {
	host, token, ca := os.Getenv(childVar), os.Getenv(childVar+"_TOKEN"), os.Getenv(childVar+"_CA")
	if host == "" {
		t.Skip("it is not a test of its own")
	}
	m, err := connectMigrations(&rest.Config{Host: host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: ca}},
		Config{NodeName: "kill-1", UserAgent: "braid-test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	m.Lead(t.Context(), func(ctx context.Context) {
		fmt.Println("leading")
		<-ctx.Done()
	})
}

func TestClusterAnotherDaemonLeadsWhenTheLeaderIsKilled(t *testing.T) {
	s := migrating(t)
	s.freeLease(t)
	config := s.migrateConfig(t, "kill-1")
	child := exec.Command(os.Args[0], "-test.run=^TestLeaderChild$")
	child.Env = append(os.Environ(), childVar+"="+config.Host, childVar+"_TOKEN="+config.BearerToken, childVar+"_CA="+config.CAFile)
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			child.Process.Kill()
			child.Wait()
		}
	}
	defer kill()
	leads := make(chan time.Time, 1)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			if scan.Text() == "leading" {
				leads <- time.Now()
				return
			}
		}
	}()
	at(t, "the other process leads", 30*time.Second, leads)
	next := stand(t, s.migrations(t, "kill-2"), "kill-2")
	if leader, err := s.person(t).Leader(t.Context()); err != nil || leader != "kill-1" {
		t.Errorf("the leader is %q, %v", leader, err)
	}
	never(t, "two daemons lead", next.began)
	kill()
	moment := time.Now()
	begun := at(t, "the next daemon leads", leaseDuration+10*time.Second, next.began)
	gap := begun.Sub(moment)
	t.Logf("the next daemon led %v after the leader was killed", gap.Round(time.Millisecond))
	if gap < leaseDuration-renewDeadline {
		t.Errorf("it did not wait for the lease to expire")
	}
}

// TestClusterALeaderWithoutItsAPIEndsBeforeItsLeaseExpires: by then another
// daemon, which may reach an API server, leads.
func TestClusterALeaderWithoutItsAPIEndsBeforeItsLeaseExpires(t *testing.T) {
	s := migrating(t)
	s.freeLease(t)
	first := stand(t, s.migrations(t, "cut-1"), "cut-1")
	at(t, "the first daemon leads", 20*time.Second, first.began)
	second := stand(t, s.migrations(t, "cut-2"), "cut-2")
	lease, err := s.admin.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.stopAPI()
	end := at(t, "the first daemon's lead ends", leaseDuration+5*time.Second, first.ended)
	if lasted := end.Sub(lease.Spec.RenewTime.Time); lasted > leaseDuration {
		t.Errorf("it led on for %v after the last renewal that is known of; the lease is of %v", lasted, leaseDuration)
	}
	never(t, "somebody leads without an API", second.began)
	if err := s.startAPI(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.began:
	case <-second.began:
	case <-time.After(leaseDuration + 15*time.Second):
		t.Fatal("nobody leads after the API is back")
	}
}

// TestClusterALeaderThatSeesAnotherEndsAtOnce and does not wait for its deadline.
func TestClusterALeaderThatSeesAnotherEndsAtOnce(t *testing.T) {
	s := migrating(t)
	s.freeLease(t)
	d := stand(t, s.migrations(t, "usurped-1"), "usurped-1")
	at(t, "it leads", 20*time.Second, d.began)
	client := s.admin.CoordinationV1().Leases(leaseNamespace)
	usurp := func() error {
		lease, err := client.Get(t.Context(), leaseName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		lease.Spec = coordinationv1.LeaseSpec{
			HolderIdentity: new("other-1_x"), LeaseDurationSeconds: new(int32(60)),
			AcquireTime: new(metav1.NowMicro()), RenewTime: new(metav1.NowMicro()), LeaseTransitions: new(int32(7)),
		}
		return second(client.Update(t.Context(), lease, metav1.UpdateOptions{}))
	}
	eventually(t, "another has the lease", 5*time.Second, usurp)
	moment := time.Now()
	end := at(t, "its lead ends", renewDeadline-time.Second, d.ended)
	if took := end.Sub(moment); took > 3*retryPeriod {
		t.Errorf("it led on for %v", took)
	}
	d.stop()
	lease, err := client.Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "other-1_x" {
		t.Errorf("it gave up the lease of another: %+v, %v", lease.Spec, err)
	}
	s.freeLease(t)
}
