// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxServers = 3 // MAXNS of libc
	// familyGrace is how long the addresses of one family, once known, wait for
	// those of the other: some name servers never answer for AAAA.
	familyGrace = time.Second
)

// A resolvConf is how names are looked up, resolv.conf(5).
type resolvConf struct {
	servers  []netip.AddrPort
	domains  []string // of "search"
	ndots    int      // a name with so many dots is tried as it is first
	timeout  time.Duration
	attempts int
	useTCP   bool // "use-vc"
	noAAAA   bool // "no-aaaa"
}

// parseResolvConf reads a resolv.conf as libc does: what it does not know it
// ignores, and values out of range are cut. One thing differs: without "search"
// or "domain" there are no domains, where libc takes that of the host's name.
func parseResolvConf(b []byte) resolvConf {
	c := resolvConf{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.servers) < maxServers {
				c.servers = append(c.servers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		case "domain":
			c.setDomains(f[1:2])
		case "search":
			c.setDomains(f[1:])
		case "options":
			for _, o := range f[1:] {
				c.option(o)
			}
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return c
}

func (c *resolvConf) setDomains(list []string) {
	c.domains = nil
	for _, s := range list {
		// "." searches the root, which trying the name as it is does already.
		if s = strings.Trim(s, "."); s != "" {
			c.domains = append(c.domains, s)
		}
	}
}

func (c *resolvConf) option(o string) {
	key, value, _ := strings.Cut(o, ":")
	n, err := strconv.ParseUint(value, 10, 16)
	switch {
	case key == "use-vc":
		c.useTCP = true
	case key == "no-aaaa":
		c.noAAAA = true
	case err != nil:
	case key == "ndots":
		c.ndots = int(min(n, 15))
	case key == "timeout":
		c.timeout = time.Duration(max(1, min(n, 30))) * time.Second
	case key == "attempts":
		c.attempts = int(max(1, min(n, 5)))
	}
}

// candidates returns the full names to try for host, in order.
func (c *resolvConf) candidates(host string) []string {
	if name, rooted := strings.CutSuffix(host, "."); rooted {
		return []string{name}
	}
	var list []string
	for _, d := range c.domains {
		list = append(list, host+"."+d)
	}
	if strings.Count(host, ".") >= c.ndots {
		return append([]string{host}, list...)
	}
	return append(list, host)
}

// What a name server can answer instead of addresses.
var (
	errNoSuchHost = errors.New("no such host")
	errNoAddress  = errors.New("no address of this kind")
	errServer     = errors.New("name server cannot answer")
	errBadReply   = errors.New("malformed reply of a name server")
)

// search looks host up in the search domains and as it is.
func (c *resolvConf) search(ctx context.Context, host string) ([]netip.Addr, error) {
	var failed error
	for _, name := range c.candidates(host) {
		found, err := c.lookup(ctx, name)
		switch {
		case err == nil:
			return found, nil
		case errors.Is(err, errNoSuchHost) || errors.Is(err, errNoAddress):
		case errors.Is(err, errServer):
			failed = err // as libc: others may know it under the next name
		default:
			// Without an answer the next name must not be tried: it could be
			// another host.
			return nil, dnsError(host, err)
		}
	}
	if failed != nil {
		return nil, dnsError(host, failed)
	}
	return nil, dnsError(host, errNoSuchHost)
}

func dnsError(host string, err error) error {
	e := &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: host, IsNotFound: errors.Is(err, errNoSuchHost)}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		e.IsTimeout = true
	}
	e.IsTemporary = !e.IsNotFound && !errors.Is(err, context.Canceled)
	return e
}

type answer struct {
	addrs []netip.Addr
	err   error
}

// lookup asks for both kinds of addresses of one full name at once.
func (c *resolvConf) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	types := []dnsmessage.Type{dnsmessage.TypeA}
	if !c.noAAAA {
		types = append(types, dnsmessage.TypeAAAA)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make([]answer, len(types))
	var group sync.WaitGroup
	for i, t := range types {
		group.Go(func() {
			a := &answers[i]
			if a.addrs, a.err = c.ask(inner, name, t); a.err == nil {
				stop := time.AfterFunc(familyGrace, cancel)
				context.AfterFunc(inner, func() { stop.Stop() })
			}
		})
	}
	group.Wait()
	var found []netip.Addr
	var errs []error
	for _, a := range answers {
		found = append(found, a.addrs...)
		errs = append(errs, a.err)
	}
	if len(found) > 0 {
		return found, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return nil, worst(errs)
}

// worst returns the error that says most: that a question got no answer means
// that nobody knows whether the name exists.
func worst(errs []error) error {
	for _, e := range errs {
		if !errors.Is(e, errNoSuchHost) && !errors.Is(e, errNoAddress) && !errors.Is(e, errServer) {
			return e
		}
	}
	for _, want := range []error{errServer, errNoAddress} {
		if i := slices.IndexFunc(errs, func(e error) bool { return errors.Is(e, want) }); i >= 0 {
			return errs[i]
		}
	}
	return errs[0]
}

// ask puts one question to the name servers in turn, as often as the
// configuration says, until one knows the answer.
func (c *resolvConf) ask(ctx context.Context, name string, t dnsmessage.Type) ([]netip.Addr, error) {
	q, err := newQuestion(name, t)
	if err != nil {
		return nil, err
	}
	var last error
	for range c.attempts {
		for _, s := range c.servers {
			found, err := c.exchange(ctx, s, q)
			if err == nil || errors.Is(err, errNoSuchHost) || errors.Is(err, errNoAddress) {
				return found, err
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			last = err
		}
	}
	return nil, last
}
