package main

import (
	snapshotv1 "github.com/coveyhq/covey/proto/gen/go/covey/snapshot/v1"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// callers is who may call which method. It tells no tenant from another where a call brings none, so this is all there is to keep others out. A host brings
// its own snapshots and reads any that it was told to start from; only sandboxd, which knows what is in use, drops one.
var callers = caller.Table{
	snapshotv1.RegistryService_RegisterSnapshot_FullMethodName:  {caller.Host, caller.Sandbox},
	snapshotv1.RegistryService_UploadObject_FullMethodName:      {caller.Host},
	snapshotv1.RegistryService_CommitSnapshot_FullMethodName:    {caller.Host, caller.Sandbox},
	snapshotv1.RegistryService_ReadObject_FullMethodName:        {caller.Host},
	snapshotv1.RegistryService_GetManifest_FullMethodName:       {caller.Host, caller.Sandbox},
	snapshotv1.RegistryService_AcquireLease_FullMethodName:      {caller.Host, caller.Sandbox},
	snapshotv1.RegistryService_ReleaseLease_FullMethodName:      {caller.Host, caller.Sandbox},
	snapshotv1.RegistryService_DropSnapshot_FullMethodName:      {caller.Sandbox},
	snapshotv1.RegistryService_ListHostSnapshots_FullMethodName: {caller.Host},
	snapshotv1.RegistryService_GetUsage_FullMethodName:          {caller.Sandbox},

	snapshotv1.SnapshotService_GetSnapshot_FullMethodName:     {caller.Gateway},
	snapshotv1.SnapshotService_ListSnapshots_FullMethodName:   {caller.Gateway},
	snapshotv1.SnapshotService_RenameSnapshot_FullMethodName:  {caller.Gateway},
	snapshotv1.SnapshotService_DeleteSnapshot_FullMethodName:  {caller.Gateway},
	snapshotv1.SnapshotService_ExplainSnapshot_FullMethodName: {caller.Gateway},
}
