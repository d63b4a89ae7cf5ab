package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"
)

// FuzzConversation sends a server whatever a hostile VMM may. The export fails the test when it is asked for what lies outside.
func FuzzConversation(f *testing.F) {
	option := func(opt uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, opt)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	request := func(kind uint16, off uint64, n uint32, data string) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicRequest)
		b = binary.BigEndian.AppendUint32(b, uint32(kind))
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, off)
		return append(binary.BigEndian.AppendUint32(b, n), data...)
	}
	begin := []byte{0, 0, 0, 3}
	chosen := bytes.Join([][]byte{begin, option(8, ""), option(optGo, "\x00\x00\x00\x00\x00\x01\x00\x03")}, nil)
	f.Add(begin)
	f.Add(bytes.Join([][]byte{begin, option(optList, ""), option(optAbort, "")}, nil))
	f.Add(bytes.Join([][]byte{begin, option(optExportName, ""), request(cmdRead, 0, 100, "")}, nil))
	f.Add(bytes.Join([][]byte{chosen, request(cmdWrite, 5, 3, "abc"), request(cmdFlush, 0, 0, ""), request(cmdDisc, 0, 0, "")}, nil))
	f.Add(bytes.Join([][]byte{chosen, request(cmdTrim, 1<<63, 1<<32-1, ""), request(cmdWriteZeroes, 65535, 2, "")}, nil))
	f.Add(bytes.Join([][]byte{chosen, request(cmdWrite, 65530, 100, "short")}, nil))
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &Server{export: &flat{t: t, data: make([]byte, 64<<10)}, log: slog.New(slog.DiscardHandler), conns: map[*conn]struct{}{}}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		ours, theirs := net.Pipe()
		s.take(ours)
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, theirs)
		}()
		_, _ = theirs.Write(said)
		theirs.Close()
		<-read
		s.wg.Wait()
		s.cancel()
	})
}
