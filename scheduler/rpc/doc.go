// Package rpc serves covey.scheduler.v1: it translates between the generated code and packages plan and book, checks what comes in, and maps errors.
package rpc
