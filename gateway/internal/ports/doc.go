// Package ports reaches programs that listen in sandboxes: who may, under which name, and by which connection.
//
//   - name: a port has a host name of its own, {port}-{sandbox id}.<domain>, in lower or upper case (names have none), and for clients that do not like
//     an underscore in a name with a hyphen after "sb" too
//   - token: a string that admits its bearer to one port of one sandbox until it expires; nothing else can be done with it
//   - conn: a TCP connection of the program's, carried by a call of covey.guest.v1.PortService
//
// Chosen: tokens signed with a secret of the gateways, so that each request is admitted without asking anybody. They cannot be revoked, so they are short-lived:
// a day at most. Rejected: an API key in a browser's cookie, which the page in the sandbox could make use of, for it is not to be trusted.
//
// Chosen: one connection for each request. Rejected: keeping idle ones, which count as use of the sandbox and would hold off its pause.
package ports
