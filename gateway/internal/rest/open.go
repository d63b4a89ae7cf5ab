package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/swaggest/swgui/v5emb"

	"github.com/coveyhq/covey/gateway/internal/access"
	"github.com/coveyhq/covey/gateway/internal/apidoc"
)

// checkTime bounds what one check of /readyz may take.
const checkTime = 2 * time.Second

// open serves what needs no key: health and the documentation.
func (s *Server) open(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		w.Write(apidoc.YAML())
	})
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(apidoc.JSON())
	})
	mux.Handle("GET /docs/", shieldDocs(v5emb.New("Covey", "/openapi.yaml", "/docs/")))
	mux.Handle("GET /docs", http.RedirectHandler("/docs/", http.StatusMovedPermanently))
	mux.Handle("GET /{$}", http.RedirectHandler("/docs/", http.StatusFound))
	if s.OpenMetrics {
		mux.Handle("GET /metrics", s.Metrics)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux redirects paths that are not clean, and answers 405 in its own way: it gets only what it has.
		if h, pattern := mux.Handler(r); pattern != "" && h != nil {
			mux.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownMetrics serves the gateway's metrics to administrators: they tell of all tenants.
func (s *Server) ownMetrics(w http.ResponseWriter, r *http.Request, _ map[string]string) error {
	if err := s.Keys.CheckScope(r.Context(), "GET /metrics", access.Admin); err != nil {
		return err
	}
	s.Metrics.ServeHTTP(w, r)
	return nil
}

// ready asks all checks at once.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	var (
		mu      sync.Mutex // guards results and all
		results = map[string]string{}
		all     = true
		checks  sync.WaitGroup
	)
	for name, check := range s.Checks {
		checks.Go(func() {
			err := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			results[name] = "ok"
			if err != nil {
				all, results[name] = false, "not ready"
				s.Log.WarnContext(ctx, "not ready", "check", name, "error", err)
			}
		})
	}
	checks.Wait()
	code := http.StatusOK
	if !all {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, map[string]any{"ready": all, "checks": results})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // Maps of strings and booleans alone.
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}
