package probe

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"reflect"
	"testing"
	"time"
)

// Whatever a server says, an answer is complete or there is none, and it can be
// told on.
func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"host":"10.243.6.4","addresses":["10.243.6.4","fd00::1"],"client":"10.243.4.0","pod":"p","node":"n"}`))
	f.Add([]byte(`{"client":"::ffff:10.0.0.1","addresses":["fe80::1%eth0"]}`))
	f.Add([]byte(`{"client":"","addresses":[""]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := ParseAnswer(text)
		if err != nil {
			if !reflect.DeepEqual(a, Answer{}) {
				t.Errorf("an error and %+v", a)
			}
			return
		}
		if !a.Client.IsValid() || a.Client.Is4In6() || a.Client.Zone() != "" {
			t.Errorf("client %v", a.Client)
		}
		for _, addr := range a.Addresses {
			if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
				t.Errorf("address %v", addr)
			}
		}
		again, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := ParseAnswer(again); err != nil || b.Client != a.Client || len(b.Addresses) != len(a.Addresses) {
			t.Errorf("%+v became %+v, %v", a, b, err)
		}
		_ = a.String()
	})
}

// Whatever a server sends, a request ends, and with no more than was allowed.
func FuzzGet(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 204 No\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01"))
	const limit = 512
	f.Fuzz(func(t *testing.T, sent []byte) {
		client, server := net.Pipe()
		defer client.Close()
		go func() {
			defer server.Close()
			// The request is read whole before it is answered; the end of the
			// header is enough for that.
			var tail [4]byte
			for one := make([]byte, 1); string(tail[:]) != "\r\n\r\n"; {
				if _, err := io.ReadFull(server, one); err != nil {
					return
				}
				copy(tail[:], tail[1:])
				tail[3] = one[0]
			}
			server.Write(sent) // a client that has enough closes
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://10.0.0.1/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := get(ctx, client, req, limit); len(body) > limit || timedOut(err) {
			t.Errorf("%d bytes, %v", len(body), err)
		}
	})
}

func FuzzParseCounts(f *testing.F) {
	f.Add([]byte("x\n{\"started\":\"2026-11-22T02:00:00Z\",\"targets\":[{\"name\":\"a\",\"failed\":1}]}\n"))
	f.Add([]byte(`{"started":null,"targets":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCounts(text)
		if err != nil {
			return
		}
		c.Failed()
		if err := c.Fprint(io.Discard); err != nil {
			t.Error(err)
		}
	})
}
