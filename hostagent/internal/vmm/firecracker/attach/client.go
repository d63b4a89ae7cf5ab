package attach

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The protocol's numbers; see https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. All are big-endian.
const (
	greetingMagic = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic   = 0x49484156454f5054 // "IHAVEOPT"
	requestMagic  = 0x25609513
	replyMagic    = 0x67446698

	fixedNewstyle = 1
	noZeroes      = 2
	optExportName = 1

	cmdRead  = 0
	cmdWrite = 1
	cmdFlush = 3
)

// maxTransfer bounds one request, in bytes.
const maxTransfer = 1 << 20

// client is one connection to the export "". It belongs to one goroutine.
type client struct {
	conn *net.UnixConn
	r    *bufio.Reader
	// size is the disk's, flags what its server can do.
	size  int64
	flags uint16
	last  uint64
}

// connect connects and shakes hands; after that the connection can be handed to the kernel too.
func connect(ctx context.Context, socket string) (_ *client, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn.(*net.UnixConn)}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	defer c.bound(ctx)()
	// Nothing is read ahead of the handshake: what follows it may be the kernel's.
	var greeting struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(conn, binary.BigEndian, &greeting); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	if greeting.Magic != greetingMagic || greeting.Option != optionMagic || greeting.Flags&fixedNewstyle == 0 {
		return nil, errors.New("NBD handshake: this is no server of the newstyle protocol")
	}
	flags := uint32(greeting.Flags & (fixedNewstyle | noZeroes))
	err = binary.Write(conn, binary.BigEndian, struct {
		Flags       uint32
		Magic       uint64
		Option, Len uint32
	}{flags, optionMagic, optExportName, 0})
	if err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	var export struct {
		Size  uint64
		Flags uint16
	}
	if err := binary.Read(conn, binary.BigEndian, &export); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	if flags&noZeroes == 0 {
		if _, err := io.CopyN(io.Discard, conn, 124); err != nil {
			return nil, fmt.Errorf("NBD handshake: %w", err)
		}
	}
	c.size, c.flags = int64(export.Size), export.Flags
	c.r = bufio.NewReader(conn)
	return c, nil
}

// bound cuts what is under way when the context ends; the connection is of no use then.
func (c *client) bound(ctx context.Context) (unbound func()) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// do makes one request; a read fills p, a write sends it.
func (c *client) do(ctx context.Context, command uint16, off int64, p []byte) error {
	defer c.bound(ctx)()
	c.last++
	head := make([]byte, 28)
	binary.BigEndian.PutUint32(head, requestMagic)
	binary.BigEndian.PutUint16(head[6:], command)
	binary.BigEndian.PutUint64(head[8:], c.last)
	binary.BigEndian.PutUint64(head[16:], uint64(off))
	binary.BigEndian.PutUint32(head[24:], uint32(len(p)))
	message := net.Buffers{head}
	if command == cmdWrite {
		message = append(message, p)
	}
	_, err := message.WriteTo(c.conn)
	if err == nil {
		err = c.reply(command, p)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("NBD request %d of %d bytes at %d: %w", command, len(p), off, err)
	}
	return nil
}

func (c *client) reply(command uint16, p []byte) error {
	var reply struct {
		Magic, Error uint32
		Handle       uint64
	}
	if err := binary.Read(c.r, binary.BigEndian, &reply); err != nil {
		return err
	}
	switch {
	case reply.Magic != replyMagic || reply.Handle != c.last:
		return fmt.Errorf("a reply to another request, %+v", reply)
	case reply.Error != 0:
		return fmt.Errorf("the server says error %d", reply.Error)
	case command == cmdRead:
		_, err := io.ReadFull(c.r, p)
		return err
	}
	return nil
}

func (c *client) close() error { return c.conn.Close() }
