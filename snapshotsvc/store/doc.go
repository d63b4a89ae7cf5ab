// Package store keeps the bytes of objects: in a directory, or in anything that speaks S3. Both pass the same tests.
//
// Directory: an upload is a file beside the object's, "<path>.part", which is synced and renamed once its checksum is right; the
// directory is synced after it. A broken-off upload goes on at the end of that file; what is there is hashed again, so that a torn
// file is found at the end at the latest. One process at a time writes a part (flock).
//
// S3: objects up to one part are put at once. A larger one is a multipart upload, of which a small object "<path>.upload" tells how
// far it is: the upload's id, the parts with their ETags, and the state of the hash over them. Whoever goes on later, in another
// process too, begins from it. The parts' ETags fence off a writer that was thought dead: if it has overwritten a part with other
// bytes, S3 refuses to join them.
//
// Design chosen for S3: the state of the hash is kept, so that the whole object's checksum is known without reading it back.
// Rejected: reading the object back (twice the traffic), and trusting the parts' own checksums (they say nothing of the whole).
package store
