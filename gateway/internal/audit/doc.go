// Package audit writes into the mesh's audit log what only a gateway sees: the use of sandboxes from inside, calls that change something and go
// straight to the registry or the scheduler, tokens for ports, and what the gateway refuses. What goes through the sandbox service that writes itself.
//
//   - event: what is kept of a call. Of a command its program's name, of a file its path; never arguments, environment, input or contents.
//   - entry: one event being written. It has a name of its own (uid), under which it can be written again with its end.
//   - tally: an event that stands for all calls of one kind within a minute: refusals and connections to ports.
//
// A call that changes something of the control plane is begun and ended in the log while the caller waits, and is refused where it cannot be begun. All else
// is written in batches behind the callers' backs, every half second, from a buffer that is bounded: what finds no room is lost and counted in the metric
// covey.audit.lost. A gateway that is killed loses what is not a second old. A call that is still going on then has an event without an end, as it was
// written when it began.
//
// Chosen: one log, the sandbox service's table, which the gateways reach by an internal call (AuditService); events are upserted by uid, so that a batch whose
// answer was lost is sent again. Rejected: writing data-plane events in the caller's path, a database's commit for each exec; a file on each gateway's
// disk, which nobody searches and which goes with the machine; writing refusals one by one, with which anybody without a key could fill the database; and having
// host agents write, who do not know the key.
package audit
