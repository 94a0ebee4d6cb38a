// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 30 * time.Second
	// connectStagger is the head start of an address before the next is tried
	// beside it (RFC 8305, section 5).
	connectStagger = 250 * time.Millisecond
)

// A Dialer connects by the names that were known when it was made. Go's own
// resolver reads /etc/resolv.conf, /etc/hosts and /etc/nsswitch.conf again and
// again; while the root of an image is installed in / these are the image's,
// which could then send a push wherever it likes. A Dialer opens no file.
//
// Names are looked up in the hosts file, then by DNS, whatever nsswitch.conf
// said. It is safe for concurrent use.
//
// Nothing is ever installed in / but on Linux; elsewhere a Dialer asks the
// system, which knows better than two files.
type Dialer struct {
	hosts  map[string][]netip.Addr
	conf   resolvConf
	dialer net.Dialer
	system bool // ask the system's resolver
}

// NewDialer returns a Dialer that resolves names with the contents of a hosts
// file and of a resolv.conf; nil is an empty file, which for resolv.conf means
// the name server at 127.0.0.1, as it does for libc.
func NewDialer(hosts, resolvConf []byte) *Dialer {
	return &Dialer{
		hosts: parseHosts(hosts), conf: parseResolvConf(resolvConf), system: runtime.GOOS != "linux",
		dialer: net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second},
	}
}

// DialContext connects to addr, a host or IP address and a port, as
// [net.Dialer.DialContext] does. The network is tcp or udp, with 4 or 6 behind it
// for one family only. The port is a number, "http" or "https": the names of
// others are in a file. All addresses of a host are tried, the families in
// turn, each with a short head start before the next.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	addrs, err := d.addresses(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: nameAddr{network, addr}, Err: err}
	}
	return d.race(ctx, network, addrs)
}

// nameAddr is an address that has not been resolved, for errors.
type nameAddr struct{ network, addr string }

func (a nameAddr) Network() string { return a.network }
func (a nameAddr) String() string  { return a.addr }

// addresses returns what addr stands for, in the order in which to try.
func (d *Dialer) addresses(ctx context.Context, network, addr string) ([]netip.AddrPort, error) {
	if family := strings.TrimRight(network, "46"); family != "tcp" && family != "udp" {
		return nil, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := portNumber(service)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "localhost"
	}
	found, err := d.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	var fit []netip.AddrPort
	for _, a := range interleave(found) {
		if strings.HasSuffix(network, "4") && !a.Is4() || strings.HasSuffix(network, "6") && !a.Is6() {
			continue
		}
		fit = append(fit, netip.AddrPortFrom(a, port))
	}
	if len(fit) == 0 {
		return nil, &net.AddrError{Err: "no address of the family of " + network, Addr: host}
	}
	return fit, nil
}

func portNumber(service string) (uint16, error) {
	switch service {
	case "http":
		return 80, nil
	case "https":
		return 443, nil
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q is no number from 0 to 65535", service)
	}
	return uint16(n), nil
}

// interleave takes addresses of the two families in turn, IPv6 first: where it
// does not work connecting fails at once, or the head start passes.
func interleave(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(v4), len(v6)) {
		if i < len(v6) {
			out = append(out, v6[i])
		}
		if i < len(v4) {
			out = append(out, v4[i])
		}
	}
	return out
}

type connection struct {
	c   net.Conn
	err error
}

// race connects to addrs one after the other, each starting when the one before
// has failed or had its head start, and returns the first that succeeds.
func (d *Dialer) race(ctx context.Context, network string, addrs []netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	results := make(chan connection, len(addrs))
	tick := time.NewTimer(0)
	defer tick.Stop()
	var errs []error
	for next := 0; len(errs) < len(addrs); {
		select {
		case <-tick.C:
			if next == len(addrs) {
				continue
			}
			a := addrs[next].String()
			next++
			group.Go(func() {
				// A literal address is dialled without any look-up.
				c, err := d.dialer.DialContext(ctx, network, a)
				results <- connection{c, err}
			})
			tick.Reset(connectStagger)
		case r := <-results:
			if r.err == nil {
				cancel()
				group.Wait()
				closeAll(results)
				return r.c, nil
			}
			errs = append(errs, r.err)
			tick.Reset(0)
		}
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, errors.Join(errs...)
}

// closeAll closes the connections that came too late.
func closeAll(results chan connection) {
	for {
		select {
		case r := <-results:
			if r.c != nil {
				_ = r.c.Close()
			}
		default:
			return
		}
	}
}

// LookupHost returns the addresses of host, which may be one itself. An error is
// a [net.DNSError].
func (d *Dialer) LookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if d.system {
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		for i, a := range found {
			found[i] = a.Unmap()
		}
		return found, err
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if found := d.hosts[name]; len(found) > 0 {
		return slices.Clone(found), nil
	}
	if name == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	return d.conf.search(ctx, host)
}

// parseHosts reads a hosts file, hosts(5): an address, then its names. A name on
// several lines has all their addresses.
func parseHosts(b []byte) map[string][]netip.Addr {
	hosts := make(map[string][]netip.Addr)
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue // as libc does
		}
		a = a.Unmap()
		for _, n := range f[1:] {
			n = strings.ToLower(strings.TrimSuffix(n, "."))
			if !slices.Contains(hosts[n], a) {
				hosts[n] = append(hosts[n], a)
			}
		}
	}
	return hosts
}
