// Package snapstore keeps the snapshots and builds of one host on its disk and reads blocks of them, from wherever they are.
//
// Vocabulary
//
//   - build: data of one generation; a file in the format of snapshotsvc/buildfmt. Its id is a checksum over all of it.
//   - header: maps an address space to builds; snapshotsvc/snapfmt.
//   - view: an address space that can be read: a header and the builds that it names.
//   - record: everything there is to know about a snapshot beside its bytes: manifest, and size and SHA-256 of every object.
//   - object: a file of a snapshot, or a build, by its key in the registry: "snapshots/<snapshot id>/state", "builds/<build id>".
//   - source: where a build's bytes come from, in order: this host's disk, a peer host, the registry.
//   - pinned: opened and not released yet; what is pinned stays readable.
//   - draft: a snapshot in the making.
//   - squash: a second pair of headers for a snapshot, of the same content, that name fewer builds; what the next generation builds on.
//
// Layout of the directory
//
//	builds/<build id>                    a whole build
//	builds/<build id>.part, .have        a build of elsewhere: the ranges fetched until now, in place; and which those are
//	snapshots/<snapshot id>/             manifest.json, state, memory.hdr, disk.hdr, working-set; squash/ if there is one
//	images/<image id>/                   image.json, disk.hdr: a stock image, whose content is a build like any other
//	drafts/                              whatever is being made or removed; emptied at start
//
// A snapshot exists once its directory does, which is renamed into place as a whole after everything in it and the builds that it names
// are safe on the disk.
//
// One scenario. Open finds a snapshot, verifies its state, headers and the indexes of its builds, and pins it. The pager and the
// disk read its views. Draft begins a new snapshot on top of it: the dirty memory goes to the pager's draft, the disk is frozen.
// Commit packs what changed into two builds, merges the changes into the base's headers, syncs, and renames. Another host opens
// the snapshot: its Fetcher finds the record; state and headers are fetched at once, of builds only the frames that are read, each
// once. Remove removes a snapshot when nobody has it pinned, and every build that nothing names any more.
//
// # What is verified
//
// State and headers have their SHA-256 in the record and are checked at every Open, the index of a build when it is opened, and a frame
// whenever it is read from the disk or fetched. Whatever is wrong is machine.ErrDamaged and says what and where.
//
// What is wrong on this host is healed, if a peer or the registry has it whole: a file is replaced, a frame is written into its place, a build
// whose index is wrong becomes one of elsewhere that keeps its good frames. Until then, and where nobody has it, it stays as it is. Rejected:
// removing a damaged snapshot and fetching it again (most of it is good, and what is not durable would be lost).
//
// # Chains
//
// A header names the builds of many generations after a while. Past Config.MaxChain the snapshot is squashed in the background: the
// data of all but the largest builds is copied into a new build. A snapshot that was made is never changed, as the registry may
// have it; squash headers lie beside it and become the parents of the next generation. The old builds go with the last snapshot
// that names them.
//
// Chosen: stock images are converted into a build once, by content, so that disks of snapshots name nothing but builds, wherever they
// are read. Rejected: headers that name a raw image file by digest (a second kind of source that cannot be verified by range and
// that a host without the file cannot read).
//
// Chosen: the index of builds is held in memory while they are open, 32 bytes for 64 KiB. Rejected: a memory-mapped index (a
// truncated file is a SIGBUS).
package snapstore
