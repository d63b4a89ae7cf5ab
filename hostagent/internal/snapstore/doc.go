// Package snapstore keeps the snapshots and builds of one host on its disk and reads blocks of them, from wherever they are.
//
// Vocabulary
//
//   - build: data of one generation; a file in the format of snapshotsvc/buildfmt.
//   - header: maps an address space to builds; snapshotsvc/snapfmt.
//   - view: an address space that can be read: a header and the sources of the builds that it names.
//   - source: where a build's bytes come from, in order: this host's disk, a peer host, the registry.
//
// Layout of the directory: builds/<build id>, snapshots/<snapshot id>/{manifest.json,state,memory.hdr,disk.hdr,working-set}.
// A snapshot exists once its manifest does: everything else is written, synced and renamed before it.
package snapstore
