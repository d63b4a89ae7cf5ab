// Package buildfmt is the format of build data: the changed blocks of one generation of a memory or a disk, packed one after the
// other, in frames that can be read and checked each by itself.
//
// Vocabulary
//
//   - build: one file in this format, and the bytes that it holds; offsets in a build are offsets in those bytes.
//   - frame: a stretch of a build, compressed by itself. All have the same length but the last, which may be shorter.
//   - stored bytes: a frame as it lies in the file.
//   - source: where the file can be read, by ranges: a local file, or a remote one.
//
// One scenario. A Writer takes the bytes in order and writes the file in one pass; Close tells the build's id and size. Later, on
// any host, Open reads prefix, footer and index from a source, and is sure that they are the build of that id. ReadAt
// fetches the frames that a range needs, checks them, and unpacks them.
//
// # Encoding
//
// Little endian throughout.
//
//	prefix, 32 bytes, at the beginning of the file
//	offset  size  field
//	     0     8  magic: the bytes "COVEYBLD"
//	     8     4  format version
//	    12     4  frame size, bytes: a power of two from 4096 to 1048576
//	    16     1  kind: 1 memory, 2 disk
//	    17    15  zero
//
//	frames, one after the other, without gaps
//
//	index, 24 bytes for each frame, in order
//	     0     4  stored length, bytes
//	     4     4  encoding: 0 zeros, 1 raw, 2 zstd
//	     8    16  first 16 bytes of the SHA-256 of the stored bytes; zeros for encoding 0
//
//	footer, 48 bytes, at the end of the file
//	     0     8  size of the build, bytes: a positive multiple of 4096, at most 2^44
//	     8     8  offset of the index in the file
//	    16     4  number of frames: size / frame size, rounded up; at most 2^24
//	    20     4  zero
//	    24    16  build id
//	    40     8  magic: the bytes "COVEYEND"
//
// A frame of zeros has no stored bytes. A raw one has the frame's length. One in zstd (RFC 8878, one zstd frame without dictionary) has less
// than its length.
//
// The build id is the first 16 bytes of the SHA-256 of prefix, index and the first 24 bytes of the footer. It thus is a
// checksum over every byte of the file: a header that is known to be right names builds by id, an id vouches for the index, and the index for
// the frames. So a range can be fetched from anybody and is either what was written or refused. Two builds of equal content
// written by the same release are one build.
//
// # Versions
//
// A reader refuses versions that it does not know. See Version1.
//
// # Bounds
//
// Everything that a reader allocates is bounded by the length of the file that it was told, before it allocates; unpacking a frame
// never yields more than the frame's length.
//
// Chosen: frames of 64 KiB. A fault of one page costs the reading of about 20 KiB and 60 µs of unpacking, and compression is
// within some percent of that of larger frames. Chosen: checksums over stored bytes, so that what is not right never reaches the
// decoder. Chosen: truncated SHA-256, which the processors of hosts do at more than 1 GB/s, over a CRC, which says nothing about
// bytes that somebody else has sent. Rejected: random build ids with a signed index (a second thing to distribute).
package buildfmt
