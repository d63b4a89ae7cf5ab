package consul

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"
)

// Client speaks to one Consul agent.
type Client struct {
	address   string
	api       *api.Client
	transport *http.Transport
	log       *slog.Logger
}

// New makes a client of the agent at address, host:port of its HTTP interface. Nothing is dialled yet.
func New(address, token string, log *slog.Logger) (*Client, error) {
	// No timeouts here: blocking queries are long, and each request has a context.
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
	}
	c, err := api.NewClient(&api.Config{Address: address, Scheme: "http", Token: token, Transport: transport})
	if err != nil {
		return nil, fmt.Errorf("consul %s: %w", address, err)
	}
	return &Client{address: address, api: c, transport: transport, log: log}, nil
}

// Close drops idle connections; requests under way end with their contexts.
func (c *Client) Close() { c.transport.CloseIdleConnections() }
