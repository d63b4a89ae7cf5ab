package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// isolation has a sandbox serve a secret on every address it has, and another one look for it everywhere that it can name.
func (d *Demo) isolation(ctx context.Context) error {
	a, err := d.a(ctx)
	if err != nil {
		return err
	}
	b, err := d.create(ctx, "--label", "demo=yes", "--label", "role=b")
	if err != nil {
		return err
	}
	serve := "mkdir -p /tmp/www; echo secret-of-a > /tmp/www/index.html; cd /tmp/www; nohup python3 -m http.server 8000 >/dev/null 2>&1 & " +
		"for i in $(seq 100); do curl -sf http://127.0.0.1:8000/ && exit 0; sleep 0.2; done; exit 1"
	out, err := d.show(ctx, "exec", a, "--", "bash", "-c", serve)
	if err != nil || !strings.Contains(out, "secret-of-a") {
		return fmt.Errorf("sandbox A cannot reach its own server: %q %w", out, err)
	}
	targets, err := slotAddresses()
	if err != nil {
		return err
	}
	targets = append(targets, "172.16.0.1", "172.16.0.2", "169.254.169.254")
	d.say("addresses to try from B: its own, its gateway, the metadata service, and every end of every sandbox's link on this machine: %d", len(targets))
	look := "python3 -c '" + lookAround + "' " + strings.Join(targets, " ") + "; ls /tmp/www 2>/dev/null; ps ax | grep -c [h]ttp.server; true"
	if out, err = d.quiet(ctx, "exec", b.ID, "--", "bash", "-c", look); err != nil {
		return err
	}
	if out != "0" {
		return fmt.Errorf("sandbox B found something of A: %q", out)
	}
	d.say("B found nothing: no address answers, no file, no process of A")
	return nil
}

// lookAround tries a port of many addresses at once, and prints those that answer.
const lookAround = `
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def look(address):
    try:
        socket.create_connection((address, 8000), 2).close()
        print(address, "answers")
    except OSError:
        pass
list(ThreadPoolExecutor(64).map(look, sys.argv[1:]))
`

// slotAddresses are the addresses of both ends of every sandbox's link: the host's end is listed, the sandbox's is the other one of the /30.
func slotAddresses() ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil || !strings.HasPrefix(l.Name, "cvy") {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
				ip := n.IP.To4()
				base := ip[3] &^ 3
				for i := byte(1); i <= 2; i++ {
					list = append(list, net.IPv4(ip[0], ip[1], ip[2], base+i).String())
				}
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("no sandbox's link is on this machine")
	}
	return list, nil
}
