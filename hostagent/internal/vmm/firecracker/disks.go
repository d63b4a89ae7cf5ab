package firecracker

import "context"

// Disks makes a path of a disk that is served over NBD on a Unix socket, for Firecracker does not speak NBD.
type Disks interface {
	// Attach makes the disk usable as a path to the user. What it must remember for Reattach it keeps in dir, which is the VM's.
	Attach(ctx context.Context, a Attachment) (Disk, error)
	// Reattach takes over what a former process of this agent had attached. The socket is served again.
	Reattach(ctx context.Context, a Attachment) (Disk, error)
}

// Attachment says what to attach.
type Attachment struct {
	// ID is the sandbox's.
	ID string
	// Socket serves the disk.
	Socket string
	// Dir is a directory of the VM's own, which only the agent writes to.
	Dir string
	// UID and GID that the VMM runs as.
	UID, GID int
}

// Disk is one disk, attached.
type Disk interface {
	// Path is a block device or a file.
	Path() string
	// Flush returns once all that the guest has written has reached the server of the socket. The VM stands still.
	Flush(ctx context.Context) error
	// Detach ends it. The VM has ended. A second time it does nothing.
	Detach(ctx context.Context) error
	// Close lets go of it; a later agent can reattach it.
	Close() error
}

// pathDisk is a disk that was a path to begin with.
type pathDisk string

func (p pathDisk) Path() string               { return string(p) }
func (pathDisk) Flush(context.Context) error  { return nil }
func (pathDisk) Detach(context.Context) error { return nil }
func (pathDisk) Close() error                 { return nil }
