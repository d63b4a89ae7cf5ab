// Package pager serves the memory of VMs: lazily, from snapshots, into pages that all VMs of one snapshot share.
//
// Vocabulary
//
//   - source: the memory of a snapshot as it can be read; who reads it need not know where the bytes are.
//   - image: a snapshot's memory on this host: its source, and a sparse tmpfs file, filled page by page as pages are needed,
//     which is the page cache of that memory. All VMs of a snapshot share one file.
//   - session: one VM's connection with the pager: its userfaultfd and the regions of its memory.
//   - private session: the VM maps the image's file privately (QEMU, through covey-preload.so). A fault on a hole of the file
//     reaches the pager, which fills the hole and wakes the thread; the kernel then maps the page from the page cache. Pages that
//     the guest wrote are exactly its private anonymous ones, see DirtyPages.
//   - anonymous session: the VM's memory is anonymous (Firecracker), and pages are copied in. What it discards (REMOVE
//     events) comes back as zeros.
//   - block: 64 KiB of an image. A fault brings in what its block lacks; faults one after the other bring in more.
//   - fill: bringing a range from the source into the file; one at a time for each block, whatever the number of sessions.
//   - working set: the blocks that a session needed, in order of first need.
//   - draft: the file of a snapshot in the making, which its dirty pages are written to.
//
// One scenario. Cache.Open opens a snapshot's image and begins to prefetch its working set. Cache.Serve listens on a socket; the VMM
// connects and hands over its userfaultfd (Firecracker's handshake, see Region). Faults on pages of zeros map the kernel's
// page of zeros and take no space; others fill the file. The agent dies: the VMM's threads wait. The next agent opens the same
// image, finds the file as it was, and calls TakeBack, which fetches the userfaultfd out of the VMM's process and wakes everyone.
// The VM ends: Session.Close, Image.Release. The file stays until room is needed (Config.LimitBytes) or Drop.
//
// What fails. A page that cannot be read closes Session.Failed and leaves the faulting thread waiting: the VM cannot go on and has
// to be killed. Other sessions of the image are not touched, unless they need the same page.
//
// Threads. A few workers wait for all userfaultfds in one epoll set. They serve what is at hand (pages in the file, zeros, sources that say
// that they are Local) on the spot, and leave everything else, further VMs that fault at the same time among it, to goroutines, so a
// slow source delays only who needs it.
//
// Chosen: private mappings of one file, with missing faults. Rejected: UFFDIO_COPY for all (every clone has its own copy of
// every page that it read, and dirty pages have to be tracked), and UFFDIO_CONTINUE on shared mappings (no private
// writes). Rejected: a goroutine for each session on Go's own poller (each fault wakes a spinning thread, which takes the
// processor from the guest).
//
// Known limit. A VMM that has been taken over by its guest can make the kernel put pages of zeros into holes of the file, by
// touching them outside its registered range. It cannot write, and Open gives such a file to no further VM, but running clones of
// the same snapshot may have seen zeros.
package pager
