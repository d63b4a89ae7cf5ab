package rest

import (
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/coveyhq/covey/gateway/internal/ports"
)

// What pages in a browser may do. A program in a sandbox is not to be trusted, and by path its answers come from the gateway's own origin: so they
// are told to have none (sandbox without allow-same-origin), with which a page can neither read what the gateway answers nor reach into /docs, has no
// storage and no cookies of the origin, and can register no service worker. Pages that need an origin are reached by their host name.
//
// Rejected: refusing pages by path, which programs that are no browsers ask for too; and telling pages from data by their type, which the program chooses.
const (
	portPolicy = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
	apiPolicy  = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
	docsPolicy = "default-src 'none'; script-src 'self'%; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; " +
		"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

// ofTheOrigin are what an answer says about its whole origin. By path that is the gateway's, about which a program has nothing to say.
var ofTheOrigin = []string{
	"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Public-Key-Pins", "Alt-Svc", "Nel", "Report-To", "Reporting-Endpoints",
	"Access-Control-Allow-Credentials", "Origin-Agent-Cluster", "Accept-Ch", "Critical-Ch",
}

// shielded gives the gateway's own answers the headers that bound what a browser makes of them.
func shielded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Content-Security-Policy", apiPolicy)
		next.ServeHTTP(w, r)
	})
}

// shieldDocs is the documentation with a policy that lets run its own scripts and no others.
func shieldDocs(docs http.Handler) http.Handler {
	page := httptest.NewRecorder()
	docs.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/docs/", nil))
	var inline strings.Builder
	for _, m := range regexp.MustCompile(`(?s)<script>(.*?)</script>`).FindAllSubmatch(page.Body.Bytes(), -1) {
		sum := sha256.Sum256(m[1])
		inline.WriteString(" 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'")
	}
	policy := strings.Replace(docsPolicy, "%", inline.String(), 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
		docs.ServeHTTP(w, r)
	})
}

// shieldPort bounds what an answer by path may do.
func shieldPort(h http.Header) {
	for _, name := range ofTheOrigin {
		h.Del(name)
	}
	h.Add("Content-Security-Policy", portPolicy) // Besides the program's own: a browser obeys all of them.
	h.Set("X-Content-Type-Options", "nosniff")
}

// byName tells whether browsers can be sent to the host names of ports: where the domain was configured, and where the client is on the same
// machine, whose browsers find all names below localhost there.
func (s *Server) byName(r *http.Request) bool {
	return s.PortsByHost || loopback(r.Host)
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// atHost is a request's URL by the port's host name, with a token.
func (s *Server) atHost(r *http.Request, q portRequest, token string) string {
	host := s.portHost(r, q.Port)
	query := queryWithoutToken(r.URL.RawQuery)
	if query != "" {
		query += "&"
	}
	path := q.path
	if path == "" {
		path = "/"
	}
	return scheme(r) + "://" + host + path + "?" + query + tokenQuery + "=" + url.QueryEscape(token)
}

// portHost is a port's host name, with the gateway's port as the client knows it.
func (s *Server) portHost(r *http.Request, p ports.Port) string {
	host := p.Host(s.PortDomain)
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		host = net.JoinHostPort(host, port)
	}
	return host
}
