// Package image finds the stock images of a host: root file systems that sandboxes are booted from for the first time.
//
// Vocabulary
//
//   - image: the content of a disk that nobody has written to yet, by name.
//   - catalog: the directory that guest-build makes, with artifacts.json and the images' files.
//   - id: SHA-256 over an image's content. Two hosts whose images have one id have the same bytes.
//   - stamp: what tells that a file has not been replaced since it was read: its place, size and time.
//
// One scenario. Catalog.Find looks an image up by name. File reads it: a sparse file, of which Run tells the holes. Walk goes once
// through all of it that is not zeros and returns its id; package snapstore does that once for each image, and remembers
// the result under the image's stamp.
//
// The id is the SHA-256 of: the bytes "covey image 1\n", the size of the disk in bytes, and for every block of 4096 bytes that is not all zeros, ascending, its
// offset and its bytes. Numbers have 8 bytes, little endian. So holes cost nothing, and blocks of zeros and holes are alike.
//
// Chosen: an id over the content. Rejected: the recipe's hash that artifacts.json has, because two hosts that follow one recipe
// get file systems that differ in identifiers and times, and a disk that is half from one and half from the other is destroyed.
package image
