package main

import (
	sandboxv1 "github.com/coveyhq/covey/proto/gen/go/covey/sandbox/v1"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// callers is who may call which method. What calls say of tenant and scopes is believed, so only the gateway's are taken, which has seen the key.
// Metrics and logs of a sandbox the gateway asks of its host.
var callers = caller.Table{
	sandboxv1.SandboxService_CreateSandbox_FullMethodName:     {caller.Gateway},
	sandboxv1.SandboxService_GetSandbox_FullMethodName:        {caller.Gateway},
	sandboxv1.SandboxService_ListSandboxes_FullMethodName:     {caller.Gateway},
	sandboxv1.SandboxService_DeleteSandbox_FullMethodName:     {caller.Gateway},
	sandboxv1.SandboxService_PauseSandbox_FullMethodName:      {caller.Gateway},
	sandboxv1.SandboxService_ResumeSandbox_FullMethodName:     {caller.Gateway},
	sandboxv1.SandboxService_PingSandbox_FullMethodName:       {caller.Gateway},
	sandboxv1.SandboxService_ForkSandbox_FullMethodName:       {caller.Gateway},
	sandboxv1.SandboxService_CreateSnapshot_FullMethodName:    {caller.Gateway},
	sandboxv1.SandboxService_GetRestoreReceipt_FullMethodName: {caller.Gateway},
	sandboxv1.SandboxService_GetSandboxMetrics_FullMethodName: {},
	sandboxv1.SandboxService_ReadSandboxLogs_FullMethodName:   {},
	sandboxv1.SandboxService_WatchSandboxes_FullMethodName:    {caller.Gateway},

	sandboxv1.LocatorService_LocateSandbox_FullMethodName: {caller.Gateway},
	sandboxv1.LocatorService_Authenticate_FullMethodName:  {caller.Gateway},

	sandboxv1.KeyService_CreateKey_FullMethodName: {caller.Gateway},
	sandboxv1.KeyService_ListKeys_FullMethodName:  {caller.Gateway},
	sandboxv1.KeyService_RevokeKey_FullMethodName: {caller.Gateway},

	sandboxv1.OperationsService_DrainHost_FullMethodName:          {caller.Gateway},
	sandboxv1.OperationsService_CanRestoreSnapshot_FullMethodName: {caller.Gateway},

	sandboxv1.TenantService_GetUsage_FullMethodName:        {caller.Gateway},
	sandboxv1.TenantService_GetQuota_FullMethodName:        {caller.Gateway},
	sandboxv1.TenantService_SetQuota_FullMethodName:        {caller.Gateway},
	sandboxv1.TenantService_ListAuditEvents_FullMethodName: {caller.Gateway},

	sandboxv1.AuditService_WriteAuditEvents_FullMethodName: {caller.Gateway},
}
