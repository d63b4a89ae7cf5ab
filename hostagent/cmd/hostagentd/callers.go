package main

import (
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	hostv1 "github.com/coveyhq/covey/proto/gen/go/covey/host/v1"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// callers is who may call which method, those of the data plane among them, which are passed through to guests. Hosts read each other's builds and nothing else. GetHost is for who debugs
// a host without the mesh.
var callers = caller.Table{
	hostv1.HostService_StartSandbox_FullMethodName:      {caller.Sandbox},
	hostv1.HostService_DestroySandbox_FullMethodName:    {caller.Sandbox},
	hostv1.HostService_PauseSandbox_FullMethodName:      {caller.Sandbox},
	hostv1.HostService_SnapshotSandbox_FullMethodName:   {caller.Sandbox},
	hostv1.HostService_ForkSandbox_FullMethodName:       {caller.Sandbox},
	hostv1.HostService_PingSandbox_FullMethodName:       {caller.Sandbox},
	hostv1.HostService_ListSandboxes_FullMethodName:     {caller.Sandbox},
	hostv1.HostService_WatchSandboxes_FullMethodName:    {caller.Sandbox},
	hostv1.HostService_GetHost_FullMethodName:           {},
	hostv1.HostService_ReadConsole_FullMethodName:       {caller.Gateway},
	hostv1.HostService_GetReceipt_FullMethodName:        {caller.Sandbox},
	hostv1.HostService_GetSandboxMetrics_FullMethodName: {caller.Gateway},
	hostv1.HostService_RemoveSnapshot_FullMethodName:    {caller.Sandbox},

	hostv1.PeerService_ReadObject_FullMethodName: {caller.Host},

	guestv1.ProcessService_Exec_FullMethodName:          {caller.Gateway},
	guestv1.ProcessService_ExecStream_FullMethodName:    {caller.Gateway},
	guestv1.ProcessService_ListProcesses_FullMethodName: {caller.Gateway},
	guestv1.ProcessService_SignalProcess_FullMethodName: {caller.Gateway},

	guestv1.FileService_ReadFile_FullMethodName:      {caller.Gateway},
	guestv1.FileService_WriteFile_FullMethodName:     {caller.Gateway},
	guestv1.FileService_StatFile_FullMethodName:      {caller.Gateway},
	guestv1.FileService_ListFiles_FullMethodName:     {caller.Gateway},
	guestv1.FileService_MakeDirectory_FullMethodName: {caller.Gateway},
	guestv1.FileService_MoveFile_FullMethodName:      {caller.Gateway},
	guestv1.FileService_RemoveFile_FullMethodName:    {caller.Gateway},
	guestv1.FileService_WatchFiles_FullMethodName:    {caller.Gateway},

	guestv1.PortService_Connect_FullMethodName: {caller.Gateway},
}
