// Package demo does Covey's main job on a running mesh as a person would do it: with the command line and with plain HTTP, shown as
// it happens. Every step checks what it claims and fails if that is not so.
//
// Chosen: the demo runs the released programs (bin/covey) and shows their own output, so that what is demonstrated is what people
// get. Rejected: calling the services from here, which would show this package's formatting instead.
package demo
