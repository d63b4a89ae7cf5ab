package ports

import (
	"net"
	"regexp"
	"strconv"
	"strings"
)

// Port is one port of a sandbox.
type Port struct {
	Sandbox string
	Number  int
}

var label = regexp.MustCompile(`^([0-9]{1,5})-sb[_-]([0-9a-z]{26})$`)

// FromHost reads the port that a request's Host names, with or without a port of the gateway; false if it is no name of a port.
func FromHost(host, domain string) (Port, bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	first, ok := strings.CutSuffix(strings.ToLower(host), "."+domain)
	if !ok || domain == "" {
		return Port{}, false
	}
	m := label.FindStringSubmatch(first)
	if m == nil {
		return Port{}, false
	}
	n, ok := Number(m[1])
	return Port{"sb_" + strings.ToUpper(m[2]), n}, ok
}

// Host is the port's host name.
func (p Port) Host(domain string) string {
	return strconv.Itoa(p.Number) + "-" + strings.ToLower(p.Sandbox) + "." + domain
}

// Path is what the port's paths begin with, without a slash at its end.
func (p Port) Path() string { return "/v1/sandboxes/" + p.Sandbox + "/ports/" + strconv.Itoa(p.Number) }

// Number reads a port's number; false if it is none.
func Number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n > 0
}
