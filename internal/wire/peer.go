package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// trust refuses a peer that is neither root nor of our own user, by what the
// kernel noted when the connection was made.
func trust(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("ask for the peer's user: %w", err)
	}
	return trustUID(cred.Uid, os.Geteuid())
}

func trustUID(peer uint32, own int) error {
	if peer == 0 || int64(peer) == int64(own) {
		return nil
	}
	return fmt.Errorf("%w: it runs as user %d", ErrPeer, peer)
}

// sendFirst writes frame with the descriptor of f attached, f may be nil.
func sendFirst(conn *net.UnixConn, frame []byte, f *os.File) error {
	if f == nil {
		_, err := conn.Write(frame)
		return err
	}
	n, _, err := conn.WriteMsgUnix(frame, syscall.UnixRights(int(f.Fd())), nil)
	if err != nil || n == len(frame) {
		return err
	}
	// The kernel took a part, and the descriptor went with its first byte.
	_, err = conn.Write(frame[n:])
	return err
}

// receiveFirst reads the first frame and the descriptor attached to it, if
// any. The caller owns the file.
func receiveFirst(conn *net.UnixConn) (message, *os.File, error) {
	var header [headerLen]byte
	control := make([]byte, syscall.CmsgSpace(4*maxRights))
	n, nc, flags, _, err := conn.ReadMsgUnix(header[:], control)
	if err != nil {
		return message{}, nil, err
	}
	files, err := rights(control[:nc])
	if err == nil && (len(files) > 1 || flags&syscall.MSG_CTRUNC != 0) {
		err = errors.New("more than one descriptor attached")
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	var m message
	if err == nil {
		_, err = io.ReadFull(conn, header[n:])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil {
		m, err = decodeBody(header, conn)
	}
	if err != nil {
		closeAll(files)
		return message{}, nil, err
	}
	if len(files) == 0 {
		return m, nil, nil
	}
	return m, files[0], nil
}

// maxRights leaves room for one descriptor too many, to tell that apart from
// the one that is expected. The kernel closes what has no room.
const maxRights = 2

// rights takes over the descriptors in control messages. The net package asks
// the kernel to mark them close-on-exec.
func rights(control []byte) ([]*os.File, error) {
	fds, err := descriptors(control)
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "netns")
	}
	return files, err
}

func descriptors(control []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("decode control message: %w", err)
	}
	var all []int
	for i := range messages {
		if len(messages[i].Data)%4 != 0 {
			// The kernel makes none such, and ParseUnixRights would panic.
			return nil, fmt.Errorf("control message of %d bytes", len(messages[i].Data))
		}
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // another kind of control message
		}
		all = append(all, fds...)
	}
	return all, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
