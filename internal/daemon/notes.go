package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"braid.dev/braid/internal/attach"
	"braid.dev/braid/internal/netns"
	"braid.dev/braid/internal/store"
	"braid.dev/braid/internal/wire"
)

// A note is a DEL that the runtime asked for while no daemon was there. The
// shim left it and the runtime went on; the daemon owes it. It is removed when
// nothing is left of the container, and before the next ADD of that container.

// noted returns the notes there are. A note that cannot be read still says by
// its name whom it is about.
func (d *Daemon) noted() []wire.Note {
	if d.Notes == "" {
		return nil
	}
	notes, damaged, err := wire.ReadNotes(d.Notes)
	if err != nil {
		d.Log.Error("notes of DEL cannot be read", "dir", d.Notes, "err", err)
	}
	for _, bad := range damaged {
		r, ok := bad.Request()
		if ok {
			notes = append(notes, wire.Note{File: bad.File, Request: r})
		}
		if d.pace.first("note " + bad.File) {
			d.reportDamage(sandboxOf(r).Pod, fmt.Sprintf("a note of DEL in %s cannot be read: %v", d.Notes, bad))
		}
	}
	return notes
}

// serveNote does what a note asks for. Without a hand on the host, that is
// errNoHand when it takes one.
func (d *Daemon) serveNote(ctx context.Context, n wire.Note) error {
	ctx, cancel := context.WithTimeout(ctx, d.RequestTimeout)
	defer cancel()
	leave, err := d.enter(ctx, n.Request.ContainerID)
	if err != nil {
		return err
	}
	defer leave()
	if there, err := d.hasNote(n.Request); err != nil || !there {
		return err // served meanwhile
	}
	r, err := parseRequest(n.Request)
	if err != nil {
		d.Log.Warn("a note of DEL is served by the names in it alone", "note", n.File, "err", err)
	}
	release, err := d.reachNoted(ctx, &r, n)
	if err != nil {
		return err
	}
	defer release()
	if err := d.takeDown(ctx, r); err != nil {
		return err
	}
	d.Log.Info("served a DEL of the time without a daemon", "container", r.ContainerID, "ifname", r.IfName, "noted", n.Written)
	return d.removeNote(n.Request)
}

// reachNoted gives the request of a note what it can work with. Without a hand,
// that is enough for what Braid does in process: the runtime took the DEL for
// done, and the namespace, if it is still there, ends.
func (d *Daemon) reachNoted(ctx context.Context, r *request, n wire.Note) (release func(), err error) {
	d.mend(ctx, *r)
	records, err := d.Records.Sandbox(r.ContainerID, r.IfName)
	if err := store.ExceptDamaged(err); err != nil {
		return nil, err
	}
	sb := sandboxOf(r.Request)
	sb.NSID = netns.ID(n.Namespace)
	if len(records) > 0 {
		sb = records[0].Sandbox
	} else if records, err = d.unrecorded(*r); err != nil {
		return nil, err
	}
	reach, release, err := d.reachSandbox(ctx, sb)
	if err == nil {
		r.reach = reach
		return release, nil
	}
	needsNS, needsHost := d.Attacher.Needs(records)
	known := n.Namespace == wire.Namespace{} && !n.Written.IsZero() || sb.Rebooted(d.BootID)
	if !errors.Is(err, errNoHand) || needsHost || needsNS && !known {
		return nil, err
	}
	r.reach = attach.Reach{Path: r.Path}
	return func() {}, nil
}

// settleNote serves a note before the ADD of the same container: it came first,
// and must not take down what comes now.
func (d *Daemon) settleNote(ctx context.Context, r request) error {
	there, err := d.hasNote(r.Request)
	if there {
		if err = d.takeDown(ctx, r); err == nil {
			err = d.removeNote(r.Request)
		}
	}
	if err != nil {
		return tryLater(fmt.Errorf("serve the DEL that was noted before: %w", err))
	}
	return nil
}

func (d *Daemon) hasNote(r wire.Request) (bool, error) {
	if d.Notes == "" {
		return false, nil
	}
	_, err := os.Lstat(filepath.Join(d.Notes, wire.NoteFile(r)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d *Daemon) removeNote(r wire.Request) error {
	if d.Notes == "" {
		return nil
	}
	return wire.RemoveNote(d.Notes, wire.NoteFile(r))
}

// noteWatch tells when a note appears: a shim that found no daemon may write it
// while one starts. Nil tells nothing.
type noteWatch struct{ watcher *fsnotify.Watcher }

// watchNotes begins to watch. Where that cannot be, the next round of
// reconcileLoop finds what appears.
func (d *Daemon) watchNotes() *noteWatch {
	if d.Notes == "" {
		return nil
	}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = errors.Join(os.MkdirAll(d.Notes, 0o700), w.Add(d.Notes)); err == nil {
			return &noteWatch{w}
		}
		err = errors.Join(err, w.Close())
	}
	d.Log.Warn("notes of DEL are looked for every minute only", "dir", d.Notes, "err", err)
	return nil
}

// appeared receives for every change of the directory. Most are the daemon's
// own, and a round costs little.
func (w *noteWatch) appeared() <-chan fsnotify.Event {
	if w == nil {
		return nil
	}
	return w.watcher.Events
}

func (w *noteWatch) close() {
	if w != nil {
		_ = w.watcher.Close() // nothing is lost with it
	}
}
