// Package statefile is the container of device-state files: what a VMM wrote, with a description of the VM that it fits, and a checksum
// over both. VMMs trust the states that they load: of a damaged one they may fail, assert, or go on with a guest that crashes later.
//
// Vocabulary
//
//   - description: what a VM must be like to load the state; each driver has a struct of its own for it, which is kept as JSON.
//   - body: the state as the VMM wrote it.
//   - format: a driver's magic, and the versions of its description.
//
// The file, integers little-endian:
//
//	offset  size
//	     0     7  magic, the driver's own
//	     7     1  version of the description
//	     8     4  length of the description, at most 64 KiB
//	    12     8  length of the body, at most 64 MiB
//	    20    32  SHA-256 of all that follows
//	    52        the description, JSON, then the body; nothing follows
//
// Scenario: the driver keeps one Format. Write puts a state in a file; Read gives the body back, once all of the above has been found to be so,
// and fills the description in, which the driver compares with the VM that is to load it. Both are legal at any time.
//
// Every failure to understand a file is a vmm.ErrIncompatible. A description of a former version decodes into the driver's struct with the
// fields that it lacks left alone; who needs more than that looks at those.
package statefile
