// Package snapfmt is the format of snapshot headers, for memory and disk alike. It imports the standard library alone.
//
// Vocabulary
//
//   - space: a run of bytes from 0 to a size, which a guest sees as its memory or its disk.
//   - block: the unit of mapping; all offsets and lengths are multiples of the block size.
//   - build: the data of one generation: the blocks that changed, packed one after the other; see package buildfmt.
//   - header: says of every block of a space in which build it lies and where in it, or that it is zeros.
//   - generation: one snapshot in a line of snapshots. Its header is its parent's, with the changed ranges mapped anew.
//
// One scenario. New makes the header of an empty space, which is all zeros. A snapshot packs the changed blocks into a build and
// calls Merge with where each of them went. Encode writes the result; a reader on any host calls Decode, asks Extents for
// the blocks that it needs, and reads them from the builds named there. A header never refers to another header: whoever has it and the builds
// that it names needs nothing else of its ancestors.
//
// # Encoding
//
// Little endian throughout. There are no gaps, and nothing may follow.
//
//	offset  size  field
//	     0     8  magic: the bytes "COVEYHDR"
//	     8     4  format version
//	    12     4  block size, bytes: a power of two from 4096 to 65536
//	    16     8  size of the space, bytes: a multiple of the block size, at least one block and less than 2^32 blocks
//	    24     4  generation: 0 for a header without a parent
//	    28     4  B, number of builds: at most 1024
//	    32     4  R, number of runs: 1 to 2^24
//	    36     4  zero
//	    40    16  build of this generation; zeros if it added no data
//	    56    16  build of the parent generation; zeros if there is none
//	    72  16*B  builds: 16 bytes each, none zero, none twice, each named by a run
//	     .  16*R  runs, each: start in the space (4), length (4), build index (4), offset in the build (4); the first two and the
//	              last in blocks
//	     .     4  CRC32C (Castagnoli) of everything before
//
// Build index 0 means zeros, which take no space; index i > 0 is the i-th of the builds. Runs ascend and cover the space without gap or
// overlap. A run of zeros has offset 0. Two neighbours that could be one are one: both zeros, or the same build with the
// second going on where the first ends. Builds stand in the order in which generations added them. So a header has exactly one encoding.
//
// # Versions
//
// A reader refuses versions that it does not know. See Version1.
//
// # Bounds
//
// Decode checks the counts against the limits and against the length of what it was given before it allocates, so it never allocates
// more than a small multiple of its input. Encode and Merge enforce the same limits.
//
// Chosen: runs of fixed width. They can be searched where they lie, and bounded by a multiplication. Rejected: variable-width integers (a
// third of the size, but a header has to be parsed to be searched), and a tree of pages (shares pages between generations, but a
// header is a few hundred KiB at most in practice and is read whole).
package snapfmt
