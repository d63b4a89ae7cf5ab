package rest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/ports"
	"github.com/coveyhq/covey/services/chassis/apierr"
)

// portRoute names requests to ports in logs and metrics.
const portRoute = "/v1/sandboxes/{sandbox_id}/ports/{port}/{path}"

// portRequest is a request to a port in a sandbox.
type portRequest struct {
	ports.Port
	// path is what the program sees, escaped; it begins with "/", or is empty where the request's path ends with the port.
	path   string
	byHost bool
	err    error // what is wrong with the port's number, or nil
}

// portOf reads which port a request is to; false if it is one of the API's own.
func (s *Server) portOf(r *http.Request) (portRequest, bool) {
	if p, ok := ports.FromHost(r.Host, s.PortDomain); ok {
		return portRequest{Port: p, path: r.URL.EscapedPath(), byHost: true}, true
	}
	parts := strings.SplitN(r.URL.EscapedPath(), "/", 7)
	if len(parts) < 6 || parts[1] != "v1" || parts[2] != "sandboxes" || parts[4] != "ports" || len(parts) == 7 && parts[6] == "token" {
		return portRequest{}, false
	}
	q := portRequest{Port: ports.Port{Sandbox: parts[3]}}
	if len(parts) == 7 {
		q.path = "/" + parts[6]
	}
	q.Number, q.err = portNumber(parts[5])
	return q, true
}

func portNumber(s string) (int, error) {
	n, ok := ports.Number(s)
	if !ok {
		return 0, apierr.Field("port", fmt.Sprintf("must be 1 to 65535, got %q", s))
	}
	return n, nil
}

// routeOf is the documented path that a request is of.
func (s *Server) routeOf(r *http.Request) string {
	if _, ok := s.portOf(r); ok {
		return portRoute
	}
	route, _ := s.routes.find(r.URL.Path)
	return route
}

// toPorts serves requests to ports. They are the program's in the sandbox: nothing of them is checked but who sends them.
func (s *Server) toPorts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, ok := s.portOf(r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		if err := s.servePort(w, r, q); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Server) servePort(w http.ResponseWriter, r *http.Request, q portRequest) error {
	if q.err != nil {
		return q.err
	}
	if r.Method == http.MethodTrace || r.Method == http.MethodConnect {
		// The one would show a page its cookies, the other make of the gateway an open proxy.
		return refusal{http.StatusMethodNotAllowed, apierr.E(codes.Unimplemented, "METHOD_NOT_ALLOWED", r.Method+" is not passed on to programs in sandboxes")}
	}
	pass, err := s.admit(r, q)
	if err != nil {
		return err
	}
	if pass.keep != "" && !q.byHost && wantsPage(r) && s.byName(r) {
		// There a page has an origin of its own.
		redirect(w, http.StatusFound, s.atHost(r, q, pass.keep))
		return nil
	}
	if pass.keep != "" && s.keepsCookie(q) {
		http.SetCookie(w, pass.cookie(r, q))
		if wantsPage(r) {
			// So that the token is neither in the browser's history nor in what links tell.
			redirect(w, http.StatusFound, withoutToken(r.URL))
			return nil
		}
	}
	if q.path == "" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		// Relative links of the page would lead elsewhere.
		u := *r.URL
		u.Path, u.RawPath = u.Path+"/", ""
		redirect(w, http.StatusPermanentRedirect, u.RequestURI())
		return nil
	}
	ctx, cancel := context.WithCancel(context.WithValue(pass.ctx, portKey{}, q))
	s.sockets.Add(1)
	defer s.sockets.Done()
	defer cancel()
	s.sockets.Go(func() { s.endWithGateway(ctx, cancel) })
	// A program may answer before it has read all; where the connection cannot do that, it is read to its end first.
	_ = http.NewResponseController(w).EnableFullDuplex()
	s.proxy.ServeHTTP(w, r.WithContext(ctx))
	return nil
}

func redirect(w http.ResponseWriter, status int, to string) {
	w.Header().Set("Location", to)
	w.WriteHeader(status)
}

// keepsCookie tells whether a token may be in a cookie. By path it would be one of the gateway's origin, which is for browsers that cannot be
// sent to the port's own.
func (s *Server) keepsCookie(q portRequest) bool { return q.byHost || !s.PortsByHost }

// endWithGateway cancels what still runs some time after the gateway begins to end.
func (s *Server) endWithGateway(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-ctx.Done():
		return
	case <-s.Draining:
	}
	wait := time.NewTimer(drainWait)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
		cancel()
	}
}

type portKey struct{}

// portProxy passes requests on, each over a connection of its own. Their portRequest is in the context.
func (s *Server) portProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: s.rewrite, ModifyResponse: s.giveBack, ErrorHandler: s.portError, FlushInterval: -1,
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return ports.Dial(ctx, s.ports, ctx.Value(portKey{}).(portRequest).Port)
			},
		},
	}
}

// rewrite makes the request that the program sees.
func (s *Server) rewrite(p *httputil.ProxyRequest) {
	q := p.In.Context().Value(portKey{}).(portRequest)
	path := q.path
	if path == "" {
		path = "/"
	}
	unescaped, err := url.PathUnescape(path)
	if err != nil {
		unescaped = path // net/http has read it already; so it can be unescaped.
	}
	p.Out.URL = &url.URL{Scheme: "http", Host: q.Host("sandbox"), Path: unescaped, RawPath: path, RawQuery: queryWithoutToken(p.In.URL.RawQuery)}
	p.Out.Host = p.In.Host
	p.SetXForwarded()
	if !q.byHost {
		p.Out.Header.Set("X-Forwarded-Prefix", q.Path())
	}
	scrub(p.Out.Header, q.byHost)
}

// giveBack keeps the program's answer to what is the port's.
func (s *Server) giveBack(res *http.Response) error {
	q := res.Request.Context().Value(portKey{}).(portRequest)
	res.Header.Del("X-Request-Id") // Ours names the request in the logs.
	ownCookies(res, q)
	if q.byHost {
		return nil
	}
	shieldPort(res.Header)
	if to := res.Header.Get("Location"); strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") && !strings.HasPrefix(to, q.Path()+"/") {
		res.Header.Set("Location", q.Path()+to)
	}
	return nil
}

// ownCookies lets a program set cookies for its own port alone.
func ownCookies(res *http.Response, q portRequest) {
	cookies := res.Cookies()
	res.Header.Del("Set-Cookie") // Also those that cannot be read here: a browser might.
	for _, c := range cookies {
		if c.Name == tokenCookie {
			continue
		}
		c.Domain = ""
		if !q.byHost && !strings.HasPrefix(c.Path, q.Path()+"/") {
			c.Path = q.Path() + "/" + strings.TrimPrefix(c.Path, "/")
		}
		if line := c.String(); line != "" {
			res.Header.Add("Set-Cookie", line)
		}
	}
}

// portError answers where no program did.
func (s *Server) portError(w http.ResponseWriter, r *http.Request, err error) {
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		// Nobody has read the body, and with full duplex nobody does: what follows on the connection could not be told from it.
		w.Header().Set("Connection", "close")
	}
	st, ok := status.FromError(err)
	switch {
	case apierr.Reason(err) == "PORT_CLOSED":
		err = refusal{http.StatusBadGateway, apierr.E(codes.Unavailable, "PORT_CLOSED", st.Message())}
	case !ok && !errors.Is(err, context.Canceled):
		err = refusal{http.StatusBadGateway, apierr.E(codes.Unavailable, "BAD_ANSWER", "the program on the port did not answer as HTTP: "+strings.ToValidUTF8(err.Error(), "\uFFFD"))}
	}
	s.fail(w, r, err)
}

// pass admits a request to a port.
type pass struct {
	ctx  context.Context
	keep string // a token to be kept in a cookie, or ""
	till time.Time
}

func (p pass) cookie(r *http.Request, q portRequest) *http.Cookie {
	c := &http.Cookie{Name: tokenCookie, Value: p.keep, Path: "/", Expires: p.till, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: scheme(r) == "https"}
	if !q.byHost {
		c.Path = q.Path() + "/"
	}
	return c
}

// Where a port's token is looked for, in this order; an API key comes before the cookie.
const (
	tokenHeader = "X-Covey-Port-Token"
	tokenQuery  = "covey_token"
	tokenCookie = "covey_port_token"
)

// admit lets those pass who have a token for the port, or an API key that may use its sandbox.
func (s *Server) admit(r *http.Request, q portRequest) (pass, error) {
	p := q.Port
	if t := r.Header.Get(tokenHeader); t != "" {
		return s.byToken(r, p, t)
	}
	if t := r.URL.Query().Get(tokenQuery); t != "" {
		out, err := s.byToken(r, p, t)
		out.keep = t
		return out, err
	}
	secret := access.Secret(r.Header.Values("Authorization"), r.Header.Values("X-API-Key"))
	if secret == "" {
		secret = keyAmong(r.Header.Values("Sec-WebSocket-Protocol"))
	}
	if c, err := r.Cookie(tokenCookie); err == nil && s.keepsCookie(q) && !strings.HasPrefix(secret, keyPrefix) {
		return s.byToken(r, p, c.Value)
	}
	ctx, err := s.Keys.Identify(r.Context(), secret, s.attempt(r))
	if err == nil {
		err = s.Keys.Check(ctx, guestv1.PortService_Connect_FullMethodName)
	}
	return pass{ctx: ctx}, err
}

func (s *Server) byToken(r *http.Request, p ports.Port, token string) (pass, error) {
	g, err := s.Ports.Open(token, p)
	if err != nil {
		return pass{}, apierr.E(codes.Unauthenticated, "INVALID_PORT_TOKEN", err.Error()+"; POST "+p.Path()+"/token makes one")
	}
	ctx, err := s.Keys.Admit(r.Context(), access.Caller{Tenant: g.Tenant, KeyID: g.KeyID, Scopes: []string{access.Write}}, s.attempt(r))
	return pass{ctx: ctx, till: g.Expires}, err
}

// keyPrefix begins all API keys.
const keyPrefix = "cvy_"

// scrub takes out of a request's header what admitted it: the program gets no key of Covey's. Credentials of its own stay, but by path, where a browser has
// them for the gateway's origin.
func scrub(h http.Header, byHost bool) {
	h.Del(tokenHeader)
	if !byHost {
		h.Del("Authorization")
	}
	for _, name := range []string{"Authorization", "X-Api-Key"} {
		for _, v := range h.Values(name) {
			if strings.Contains(v, keyPrefix) {
				h.Del(name)
				break
			}
		}
	}
	if strings.Contains(h.Get("Referer"), tokenQuery+"=") {
		h.Del("Referer")
	}
	filter(h, "Cookie", ";", func(c string) bool { return strings.HasPrefix(c, tokenCookie+"=") })
	filter(h, "Sec-Websocket-Protocol", ",", func(p string) bool { return strings.HasPrefix(p, keyProtocol) })
}

// filter drops elements of a header that is a list.
func filter(h http.Header, name, separator string, drop func(string) bool) {
	var kept []string
	for _, line := range h.Values(name) {
		for e := range strings.SplitSeq(line, separator) {
			if e = strings.TrimSpace(e); e != "" && !drop(e) {
				kept = append(kept, e)
			}
		}
	}
	if h.Del(name); len(kept) > 0 {
		h.Set(name, strings.Join(kept, separator+" "))
	}
}

// queryWithoutToken is a raw query, but for the token: a program may read its queries in its own way.
func queryWithoutToken(raw string) string {
	var kept []string
	for part := range strings.SplitSeq(raw, "&") {
		if name, _, _ := strings.Cut(part, "="); name != tokenQuery {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "&")
}

func withoutToken(u *url.URL) string {
	out := url.URL{Path: "/" + strings.TrimLeft(u.Path, "/"), RawQuery: queryWithoutToken(u.RawQuery)} // "//x" would be another host.
	return out.RequestURI()
}

// wantsPage tells a browser that goes to a page from a program.
func wantsPage(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// scheme is what the client used: a proxy before the gateway may have ended TLS.
func scheme(r *http.Request) string {
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		return "https"
	}
	return "http"
}
