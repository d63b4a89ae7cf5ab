package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coveyhq/covey/gateway/internal/ports"
	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
)

func (a *app) portCmd() *cobra.Command {
	var ttl int
	var byPath bool
	cmd := &cobra.Command{
		Use: "port SANDBOX PORT", Short: "Print a URL for a port in a sandbox",
		Long: "Prints a URL that opens the program which listens on a port in a sandbox. It admits whoever has it to that port alone, until it expires.",
		Args: args("SANDBOX", "PORT"),
		RunE: func(cmd *cobra.Command, got []string) error {
			n, ok := ports.Number(got[1])
			if !ok {
				return usageError{fmt.Errorf("PORT: must be 1 to 65535, got %q", got[1])}
			}
			made, raw, err := a.portToken(cmd.Context(), ports.Port{Sandbox: got[0], Number: n}, ttl)
			switch {
			case err != nil:
				return err
			case a.output == "json":
				_, err = fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(raw))
			case byPath:
				_, err = fmt.Fprintln(a.out, made.PathURL)
			default:
				_, err = fmt.Fprintln(a.out, made.URL)
			}
			return err
		},
	}
	cmd.Flags().IntVar(&ttl, "ttl", 3600, "seconds that the URL holds, at most a day")
	cmd.Flags().BoolVar(&byPath, "path", false, "a URL with the gateway's own host name, for programs that do not resolve names below localhost")
	return cmd
}

// portURLs is the gateway's answer.
type portURLs struct {
	URL     string `json:"url"`
	PathURL string `json:"path_url"`
}

// portToken asks for a token. It is REST's alone: the URLs are of HTTP.
func (a *app) portToken(ctx context.Context, p ports.Port, ttl int) (made portURLs, raw []byte, err error) {
	key, err := findKey(a.url, a.key)
	if err != nil {
		return made, nil, err
	}
	body := strings.NewReader(fmt.Sprintf(`{"ttl_sec":%d}`, ttl))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(a.url, "/")+p.Path()+"/token", body)
	if err != nil {
		return made, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	web, err := a.web()
	if err != nil {
		return made, nil, err
	}
	res, err := web.Do(req)
	if err != nil {
		return made, nil, status.Error(codes.Unavailable, err.Error())
	}
	defer res.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(res.Body, 1<<20)); err != nil {
		return made, nil, err
	}
	if res.StatusCode != http.StatusOK {
		return made, nil, problemOf(raw, res.Status)
	}
	return made, raw, json.Unmarshal(raw, &made)
}

func (a *app) forwardCmd() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "forward SANDBOX LOCAL:REMOTE", Short: "Make a port in a sandbox a port of this machine",
		Long: "Listens on port LOCAL of this machine and passes TCP connections on to port REMOTE in the sandbox, until interrupted. " +
			"LOCAL 0 takes any free port; PORT alone stands for PORT:PORT.",
		Args: args("SANDBOX", "LOCAL:REMOTE"),
		RunE: func(cmd *cobra.Command, got []string) error {
			local, remote, err := portPair(got[1])
			if err != nil {
				return err
			}
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", net.JoinHostPort(address, strconv.Itoa(local)))
			if err != nil {
				return err
			}
			fmt.Fprintf(a.err, "%s is port %d of %s; interrupt to end\n", l.Addr(), remote, got[0])
			return a.forward(cmd.Context(), l, ports.Port{Sandbox: got[0], Number: remote})
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address of this machine to listen on")
	return cmd
}

func portPair(s string) (local, remote int, err error) {
	left, right, two := strings.Cut(s, ":")
	if !two {
		right = left
	}
	remote, ok := ports.Number(right)
	l, err := strconv.ParseUint(left, 10, 16)
	if !ok || err != nil {
		return 0, 0, usageError{fmt.Errorf("LOCAL:REMOTE: must be two ports like 8080:80, got %q", s)}
	}
	return int(l), remote, nil
}

// forward serves a listener until the context ends, or an interrupt; then it ends what is open.
func (a *app) forward(ctx context.Context, l net.Listener, p ports.Port) error {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	client := guestv1.NewPortServiceClient(a.c.conn)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		open.Go(func() {
			if err := join(ctx, client, p, c.(*net.TCPConn)); err != nil && ctx.Err() == nil {
				fmt.Fprintln(a.err, "covey:", a.explain(err))
			}
		})
	}
}

// join passes bytes between a connection here and one in the sandbox until both ways have ended.
func join(ctx context.Context, client guestv1.PortServiceClient, p ports.Port, local *net.TCPConn) error {
	defer local.Close()
	far, err := ports.Dial(ctx, client, p)
	if err != nil {
		_ = local.SetLinger(0) // The program here sees a connection that was refused, as near as it can be shown.
		return err
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() {
		far.Close()
		local.Close()
	})
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		if _, err := io.Copy(local, far); err != nil {
			local.Close() // Ends the copying the other way, too.
			return
		}
		_ = local.CloseWrite() // An error means that it has gone.
	})
	if _, err := io.Copy(far, local); err != nil {
		far.Close()
	} else {
		_ = far.CloseWrite() // As above.
	}
	back.Wait()
	return nil
}
