package main

import (
	schedulerv1 "github.com/coveyhq/covey/proto/gen/go/covey/scheduler/v1"
	"github.com/coveyhq/covey/services/chassis/caller"
)

// callers is who may call which method. A host beats, for itself, and has no say about placement, pools and cordons.
var callers = caller.Table{
	schedulerv1.SchedulerService_Place_FullMethodName:              {caller.Sandbox},
	schedulerv1.SchedulerService_ReleaseReservation_FullMethodName: {caller.Sandbox, caller.Scheduler},
	schedulerv1.SchedulerService_Heartbeat_FullMethodName:          {caller.Host},

	schedulerv1.HostsService_ListHosts_FullMethodName:        {caller.Gateway, caller.Sandbox},
	schedulerv1.HostsService_ExplainPlacement_FullMethodName: {caller.Gateway, caller.Sandbox},
	schedulerv1.HostsService_CordonHost_FullMethodName:       {caller.Gateway, caller.Sandbox},
	schedulerv1.HostsService_GetBaseline_FullMethodName:      {caller.Gateway},
	schedulerv1.HostsService_SetBaseline_FullMethodName:      {caller.Gateway},
	schedulerv1.HostsService_ClearBaseline_FullMethodName:    {caller.Gateway},
}
