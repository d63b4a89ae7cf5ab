package access

import (
	"slices"
	"strings"
)

// Scopes of keys.
const (
	Read  = "read"
	Write = "write"
	Admin = "admin"
)

// readVerbs begin the names of methods that change nothing.
var readVerbs = []string{"Get", "List", "Watch", "Explain", "Read", "Stat"}

// ScopeOf is the scope that a method needs, like "/covey.sandbox.v1.SandboxService/GetSandbox".
func ScopeOf(fullMethod string) string {
	service, method, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	switch service[strings.LastIndex(service, ".")+1:] {
	case "HostsService", "KeyService", "OperationsService":
		return Admin
	}
	switch method {
	case "SetQuota", "ListAuditEvents":
		return Admin
	}
	for _, v := range readVerbs {
		if strings.HasPrefix(method, v) {
			return Read
		}
	}
	return Write
}

// may tells whether scopes cover the one that is needed.
func may(scopes []string, needed string) bool {
	switch needed {
	case Read:
		return len(scopes) > 0
	case Write:
		return slices.Contains(scopes, Write) || slices.Contains(scopes, Admin)
	}
	return slices.Contains(scopes, needed)
}
