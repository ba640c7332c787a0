package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// message is what one frame holds: exactly one of its fields. A message with
// none of them comes from a newer peer and is skipped.
type message struct {
	Request *Request    `json:"request,omitempty"`
	Exec    *Exec       `json:"exec,omitempty"`
	Cancel  uint64      `json:"cancel,omitempty"`
	Result  *ExecResult `json:"result,omitempty"`
	Reply   *Reply      `json:"reply,omitempty"`
}

const headerLen = 4

// encode returns m as a frame, or ErrTooLarge.
func encode(m message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("%w: %d", ErrTooLarge, len(body))
	}
	frame := make([]byte, headerLen, headerLen+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	return append(frame, body...), nil
}

// decode reads one frame. It returns io.EOF when the stream ends between two
// frames and io.ErrUnexpectedEOF when it ends within one.
func decode(r io.Reader) (message, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return message{}, err
	}
	return decodeBody(header, r)
}

func decodeBody(header [headerLen]byte, r io.Reader) (message, error) {
	size := int64(binary.BigEndian.Uint32(header[:]))
	if size > MaxFrame {
		return message{}, fmt.Errorf("%w: %d", ErrTooLarge, size)
	}
	// The buffer grows with what arrives: a length alone reserves no memory.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, size); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	var m message
	if err := json.Unmarshal(body.Bytes(), &m); err != nil {
		return message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}
