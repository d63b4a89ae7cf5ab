package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Magic numbers of the handshake and of transmission.
const (
	magicServer      = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply = 0x0003e889045565a9
	magicRequest     = 0x25609513
	magicReply       = 0x67446698
)

// Flags of the handshake; the client's have the same values.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7
)

// Replies to options.
const (
	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repErr        = 1 << 31
	repErrUnsup   = repErr | 1
	repErrInvalid = repErr | 3
	repErrUnknown = repErr | 6
)

// Kinds of information.
const (
	infoExport    = 0
	infoBlockSize = 3
)

// transmissionFlags say what the server can do: flags, flush, FUA, trim, write zeroes, several connections.
const transmissionFlags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<8

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
)

// Flags of commands.
const (
	flagFUA    = 1 << 0
	flagNoHole = 1 << 1
)

// errno is an error as the protocol has it.
type errno uint32

// Error codes of replies.
const (
	ok        errno = 0
	eIO       errno = 5
	eINVAL    errno = 22
	eNOSPC    errno = 28
	eSHUTDOWN errno = 108
)

// Sizes of what goes over the wire, bytes.
const (
	requestSize = 28
	replySize   = 16
	// maxOption is the most that an option may have: a name of 4096 bytes and what stands around it.
	maxOption = 8192
	// MaxRequest is the most data of one request, as it is advertised.
	MaxRequest = 2 << 20
	// preferred is the block size in which clients do well to work.
	preferred = 4096
)

// request is one command of a client.
type request struct {
	flags, kind uint16
	cookie      uint64
	off         uint64
	length      uint32
}

var errMagic = errors.New("the client does not speak NBD")

func parseRequest(b *[requestSize]byte) (request, error) {
	if m := binary.BigEndian.Uint32(b[0:]); m != magicRequest {
		return request{}, fmt.Errorf("%w: a request began with %#x", errMagic, m)
	}
	return request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		kind:   binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// payload is how many bytes follow the request.
func (r request) payload() uint32 {
	if r.kind == cmdWrite {
		return r.length
	}
	return 0
}

// check tells what is wrong with a request to an export of size bytes.
func (r request) check(size int64) errno {
	legal := uint16(flagFUA)
	switch r.kind {
	case cmdFlush:
		// Offset and length are reserved: some clients send a size here.
		return flagsOnly(r.flags, legal)
	case cmdRead, cmdWrite:
		if r.length > MaxRequest {
			return eINVAL
		}
	case cmdTrim:
	case cmdWriteZeroes:
		legal |= flagNoHole
	default:
		return eINVAL
	}
	if e := flagsOnly(r.flags, legal); e != ok {
		return e
	}
	if r.off > uint64(size) || uint64(r.length) > uint64(size)-r.off {
		if r.kind == cmdRead || r.kind == cmdTrim {
			return eINVAL
		}
		return eNOSPC
	}
	return ok
}

func flagsOnly(flags, legal uint16) errno {
	if flags&^legal != 0 {
		return eINVAL
	}
	return ok
}

func putReply(b []byte, e errno, cookie uint64) {
	binary.BigEndian.PutUint32(b[0:], magicReply)
	binary.BigEndian.PutUint32(b[4:], uint32(e))
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// errnoOf is what a client is told of an error.
func errnoOf(err error) errno {
	switch {
	case err == nil:
		return ok
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return eNOSPC
	}
	return eIO
}
