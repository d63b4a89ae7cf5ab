package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxOptions bounds how long a client may negotiate.
const maxOptions = 64

// errAborted: the client negotiated and then went away, as it may.
var errAborted = errors.New("the client ended the negotiation")

// handshake negotiates until the client has chosen the export. Errors end the connection.
func handshake(r *bufio.Reader, w io.Writer, size int64) error {
	var greeting [18]byte
	binary.BigEndian.PutUint64(greeting[0:], magicServer)
	binary.BigEndian.PutUint64(greeting[8:], magicOption)
	binary.BigEndian.PutUint16(greeting[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := w.Write(greeting[:]); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(r, flags[:]); err != nil {
		return err
	}
	client := binary.BigEndian.Uint32(flags[:])
	if client&^(flagFixedNewstyle|flagNoZeroes) != 0 || client&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: it has the handshake flags %#x", errMagic, client)
	}
	h := negotiation{r: r, w: w, size: size, noZeroes: client&flagNoZeroes != 0}
	for range maxOptions {
		if chosen, err := h.option(); chosen || err != nil {
			return err
		}
	}
	return fmt.Errorf("the client sent %d options and chose no export", maxOptions)
}

type negotiation struct {
	r        *bufio.Reader
	w        io.Writer
	size     int64
	noZeroes bool
}

// option answers one option, and tells whether the export is now chosen.
func (h *negotiation) option() (chosen bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return false, err
	}
	if m := binary.BigEndian.Uint64(head[0:]); m != magicOption {
		return false, fmt.Errorf("%w: an option began with %#x", errMagic, m)
	}
	opt, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if length > maxOption {
		return false, fmt.Errorf("%w: an option has %d bytes; at most %d are legal", errMagic, length, maxOption)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return false, err
	}
	switch opt {
	case optExportName:
		return true, h.exportName(data)
	case optAbort:
		return false, errors.Join(h.reply(opt, repAck, nil), errAborted)
	case optList:
		return false, h.list(data)
	case optInfo, optGo:
		return h.info(opt, data)
	}
	return false, h.reply(opt, repErrUnsup, nil)
}

func (h *negotiation) reply(opt, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := h.w.Write(append(b, data...))
	return err
}

// exportName is the one option that has no reply for errors: an unknown name ends the connection.
func (h *negotiation) exportName(name []byte) error {
	if len(name) > 0 {
		return fmt.Errorf("the client asked for the export %q; only \"\" exists", name)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(h.size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags)
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := h.w.Write(b)
	return err
}

func (h *negotiation) list(data []byte) error {
	if len(data) > 0 {
		return h.reply(optList, repErrInvalid, nil)
	}
	if err := h.reply(optList, repServer, make([]byte, 4)); err != nil {
		return err
	}
	return h.reply(optList, repAck, nil)
}

// info answers INFO and GO: length of the name, name, number of infos, infos.
func (h *negotiation) info(opt uint32, data []byte) (chosen bool, err error) {
	name, infos, valid := splitInfo(data)
	if !valid {
		return false, h.reply(opt, repErrInvalid, nil)
	}
	if len(name) > 0 {
		return false, h.reply(opt, repErrUnknown, nil)
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(h.size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags)
	if err := h.reply(opt, repInfo, b); err != nil {
		return false, err
	}
	for ; len(infos) > 0; infos = infos[2:] {
		if binary.BigEndian.Uint16(infos) != infoBlockSize {
			continue
		}
		b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
		for _, size := range []uint32{1, preferred, MaxRequest} {
			b = binary.BigEndian.AppendUint32(b, size)
		}
		if err := h.reply(opt, repInfo, b); err != nil {
			return false, err
		}
		break
	}
	return opt == optGo, h.reply(opt, repAck, nil)
}

func splitInfo(data []byte) (name, infos []byte, valid bool) {
	if len(data) < 6 {
		return nil, nil, false
	}
	length := uint64(binary.BigEndian.Uint32(data))
	if length > uint64(len(data)-6) {
		return nil, nil, false
	}
	name, data = data[4:4+length], data[4+length:]
	count := int(binary.BigEndian.Uint16(data))
	return name, data[2:], len(data)-2 == 2*count
}
