package chassis

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxSniffed bounds what is read of an HTTP/2 connection to tell whose it is, bytes.
const maxSniffed = 64 << 10

// sniff reads an HTTP/2 connection, whose preface has been read, up to its first request, and returns the connection with all of it still to be read, and
// whether the request is gRPC's.
//
// Some clients send nothing until they have seen the server's settings, so that empty ones are sent here; the server that gets the connection
// sends its own, as it may at any time. It did not send the first ones, so their acknowledgement is taken out of what it reads.
func sniff(c net.Conn) (_ net.Conn, isGRPC bool, err error) {
	read := bytes.NewBufferString(preface)
	f := http2.NewFramer(c, io.TeeReader(c, read))
	f.SetMaxReadFrameSize(maxSniffed)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.MaxHeaderListSize = maxSniffed
	if err := f.WriteSettings(); err != nil {
		return nil, false, err
	}
	own := &unacknowledged{Conn: c}
	for read.Len() < maxSniffed {
		whole := read.Len()
		frame, err := f.ReadFrame()
		if err != nil && read.Len() > whole {
			return nil, false, err // In the middle of a frame, or a frame that cannot be.
		}
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				return nil, false, err
			}
			break // An idle connection; what serves HTTP serves both.
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			own.head = bytes.NewReader(read.Bytes())
			return own, ofGRPC(frame), nil
		case *http2.SettingsFrame:
			if frame.IsAck() && !own.done {
				own.done = true
				read.Truncate(whole)
			}
		}
	}
	own.head = bytes.NewReader(read.Bytes())
	return own, false, nil
}

func ofGRPC(m *http2.MetaHeadersFrame) bool {
	for _, f := range m.RegularFields() {
		if f.Name == "content-type" {
			return isGRPC(f.Value)
		}
	}
	return false
}

// isGRPC tells gRPC's media types, and not those of gRPC-Web.
func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

const frameHeader = 9 // bytes

// unacknowledged is a connection some of which has been read already, without the first acknowledgement of settings that comes.
type unacknowledged struct {
	net.Conn
	head *bytes.Reader // read first; ends with a whole frame
	done bool          // the acknowledgement has been taken out

	// Of what is read after the head until done:
	header [frameHeader]byte
	have   int    // of header
	give   []byte // of header, still to be given
	left   int    // of the frame's payload
}

// Read implements net.Conn.
func (c *unacknowledged) Read(p []byte) (int, error) {
	for {
		switch {
		case len(p) == 0:
			return 0, nil
		case c.head.Len() > 0:
			return c.head.Read(p)
		case len(c.give) > 0:
			n := copy(p, c.give)
			c.give = c.give[n:]
			return n, nil
		case c.left > 0:
			n, err := c.Conn.Read(p[:min(len(p), c.left)])
			c.left -= n
			return n, err
		case c.done:
			return c.Conn.Read(p)
		}
		n, err := c.Conn.Read(c.header[c.have:])
		if c.have += n; c.have < frameHeader {
			if err != nil {
				return 0, err
			}
			continue
		}
		c.have = 0
		length, kind, flags := int(c.header[0])<<16|int(c.header[1])<<8|int(c.header[2]), http2.FrameType(c.header[3]), http2.Flags(c.header[4])
		if kind == http2.FrameSettings && flags.Has(http2.FlagSettingsAck) && length == 0 {
			c.done = true
			continue
		}
		c.give, c.left = c.header[:], length
	}
}

// ReadFrom keeps the kernel's copying for what is written.
func (c *unacknowledged) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }
