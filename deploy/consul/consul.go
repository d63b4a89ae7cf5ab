//go:build tools

// Package consul pins the Consul that the local mesh runs, and builds it from its Go module: Debian 12 has no package of it.
// It is a module of its own, outside go.work, so that Consul's many dependencies touch nothing of ours.
//
//	cd deploy/consul && GOWORK=off go build -o consul github.com/hashicorp/consul
package consul

import _ "github.com/hashicorp/consul"
