// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// dialer returns a Dialer that asks the given servers, on every OS.
func dialer(hosts, conf string, servers ...*nameServer) *Dialer {
	d := NewDialer([]byte(hosts), []byte(conf))
	d.system = false
	if len(servers) > 0 {
		d.conf.servers = nil
	}
	for _, s := range servers {
		d.conf.servers = append(d.conf.servers, s.addr)
	}
	return d
}

func lookup(t *testing.T, d *Dialer, host string) string {
	t.Helper()
	found, err := d.LookupHost(t.Context(), host)
	if err != nil {
		var de *net.DNSError
		if !errors.As(err, &de) {
			t.Errorf("error %T, want a net.DNSError", err)
		}
		return "error: " + err.Error()
	}
	var list []string
	for _, a := range found {
		list = append(list, a.String())
	}
	return strings.Join(list, " ")
}

func TestParseResolvConf(t *testing.T) {
	t.Parallel()
	ap := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
		}
		return out
	}
	for _, tt := range []struct {
		name, text string
		want       resolvConf
	}{
		{"empty", "", resolvConf{servers: ap("127.0.0.1"), ndots: 1, timeout: 5 * time.Second, attempts: 2}},
		{
			"a pod's", "search a.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
			resolvConf{servers: ap("10.96.0.10"), domains: []string{"a.svc.cluster.local", "svc.cluster.local", "cluster.local"}, ndots: 5, timeout: 5 * time.Second, attempts: 2},
		},
		{
			"all options", "# x\n; y\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n" +
				"domain one.\nsearch . two\noptions timeout:99 attempts:0 rotate use-vc no-aaaa ndots:x ndots:99 edns0",
			resolvConf{servers: ap("::1", "fe80::1%eth0", "1.1.1.1"), domains: []string{"two"}, ndots: 15, timeout: 30 * time.Second, attempts: 1, useTCP: true, noAAAA: true},
		},
		{"the last of search and domain", "search a b\ndomain c d", resolvConf{servers: ap("127.0.0.1"), domains: []string{"c"}, ndots: 1, timeout: 5 * time.Second, attempts: 2}},
	} {
		got := parseResolvConf([]byte(tt.text))
		if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(resolvConf{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestLookupWithoutDNS(t *testing.T) {
	t.Parallel()
	silent := serve(t, func(string, dnsmessage.Question, *dnsmessage.Message) [][]byte { return nil })
	d := dialer("10.0.0.1 One two.example. # three\n10.0.0.2 one\n::ffff:10.0.0.3 four\nbroken five\n10.0.0.1 one", "", silent)
	for host, want := range map[string]string{
		"10.1.2.3": "10.1.2.3", "::1": "::1", "::ffff:1.2.3.4": "1.2.3.4", "fe80::1%lo": "fe80::1%lo",
		"one": "10.0.0.1 10.0.0.2", "ONE.": "10.0.0.1 10.0.0.2", "two.example": "10.0.0.1", "four": "10.0.0.3",
		"localhost": "127.0.0.1 ::1", "LocalHost.": "127.0.0.1 ::1",
		"": "error: lookup : no such host", "a..b": "error: lookup a..b: no such host",
		"a b": "error: lookup a b: no such host", "b\u00fc": "error: lookup b\u00fc: no such host",
	} {
		if got := lookup(t, d, host); got != want {
			t.Errorf("%q: got %s, want %s", host, got, want)
		}
	}
	if q := silent.questions(); len(q) > 0 {
		t.Errorf("asked %v", q)
	}
	if got := lookup(t, dialer("127.0.0.9 localhost", ""), "localhost"); got != "127.0.0.9" {
		t.Errorf("localhost of the hosts file: %s", got)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	table := map[string]string{
		"both.test. A": "10.0.0.1 10.0.0.2", "both.test. AAAA": "fd00::1", "four.test. A": "10.0.0.4", "six.test. AAAA": "fd00::6",
		"alias.test. CNAME": "b.test.", "b.test. CNAME": "both.test.", "loop.test. CNAME": "loop2.test.", "loop2.test. TXT": "",
		"none.test. TXT": "", "dangling.test. CNAME": "gone.test.",
		"svc.ns.local. A": "10.0.1.1", "a.b.local. A": "10.0.1.2", "a.b. A": "10.0.1.3", "only. A": "10.0.1.4",
	}
	s := serve(t, zone(table))
	for _, tt := range []struct{ conf, host, want string }{
		{"", "both.test", "10.0.0.1 10.0.0.2 fd00::1"},
		{"options no-aaaa", "both.test", "10.0.0.1 10.0.0.2"},
		{"options use-vc", "BOTH.test", "error: lookup BOTH.test: no such host"}, // the fake has no letter case
		{"", "four.test", "10.0.0.4"},
		{"", "six.test", "fd00::6"},
		{"", "alias.test", "10.0.0.1 10.0.0.2 fd00::1"},
		{"", "loop.test", "error: lookup loop.test: no such host"},
		{"", "none.test", "error: lookup none.test: no such host"},
		{"", "dangling.test", "error: lookup dangling.test: no such host"},
		{"", "gone.test", "error: lookup gone.test: no such host"},
		{"search x.local ns.local", "svc", "10.0.1.1"},
		{"search ns.local", "svc.", "error: lookup svc.: no such host"},
		{"search local", "a.b", "10.0.1.3"},
		{"search local\noptions ndots:2", "a.b", "10.0.1.2"},
		{"search local\noptions ndots:2", "a.b.", "10.0.1.3"},
		{"search local", "only", "10.0.1.4"},
	} {
		if got := lookup(t, dialer("", tt.conf, s), tt.host); got != tt.want {
			t.Errorf("%q with %q: got %s, want %s", tt.host, tt.conf, got, tt.want)
		}
	}
}

func TestLookupOrder(t *testing.T) {
	t.Parallel()
	s := serve(t, zone(map[string]string{"x.y. A": "10.0.0.1"}))
	d := dialer("", "search one two\noptions ndots:5 no-aaaa", s)
	if got := lookup(t, d, "x.y"); got != "10.0.0.1" {
		t.Error(got)
	}
	if diff := cmp.Diff([]string{"udp A x.y.one.", "udp A x.y.two.", "udp A x.y."}, s.questions()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTruncatedReply(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}).String())
	}
	table := map[string]string{"big.test. A": strings.Join(many, " ")}
	s := serve(t, func(network string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		if fill(m, q, table); network == "udp" && len(m.Answers) > 1 {
			m.Answers, m.Truncated = m.Answers[:1], true
		}
		return pack(m)
	})
	if got := lookup(t, dialer("", "options no-aaaa", s), "big.test"); got != strings.Join(many, " ") {
		t.Errorf("got %s", got)
	}
	if diff := cmp.Diff([]string{"udp A big.test.", "tcp A big.test."}, s.questions()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	always := serve(t, func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		m.Truncated = true
		return pack(m)
	})
	if got := lookup(t, dialer("", "", always), "big.test"); !strings.Contains(got, "truncated over TCP") {
		t.Errorf("got %s", got)
	}
}

// What is no reply to the question must change nothing.
func TestForgedReplies(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		var out [][]byte
		forge := func(change func(f *dnsmessage.Message)) {
			f := *m
			f.Questions, f.Answers = slices.Clone(m.Questions), nil
			addRecord(&f, "x.test.", "6.6.6.6")
			change(&f)
			out = append(out, pack(&f)...)
		}
		forge(func(f *dnsmessage.Message) { f.ID++ })
		forge(func(f *dnsmessage.Message) { f.Response = false })
		forge(func(f *dnsmessage.Message) { f.Questions = nil })
		forge(func(f *dnsmessage.Message) { f.Questions = append(f.Questions, f.Questions[0]) })
		forge(func(f *dnsmessage.Message) { f.Questions[0].Name = dnsmessage.MustNewName("y.test.") })
		forge(func(f *dnsmessage.Message) { f.Questions[0].Type = dnsmessage.TypeTXT })
		forge(func(f *dnsmessage.Message) { f.Questions[0].Class = dnsmessage.ClassCHAOS })
		out = append(out, nil, []byte("nonsense"))
		// The true one, with an address of another name in it, and letters as some
		// servers give them back.
		m.Questions[0].Name = dnsmessage.MustNewName("X.tesT.")
		addRecord(m, "other.test.", "6.6.6.6")
		addRecord(m, "X.test.", "10.0.0.1")
		return append(out, pack(m)...)
	})
	if got := lookup(t, dialer("", "options no-aaaa", s), "x.test"); got != "10.0.0.1" {
		t.Errorf("got %s", got)
	}
}

func TestLostPackets(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[dnsmessage.Type]int{}
	answers := zone(map[string]string{"x.test. A": "10.0.0.1", "x.test. AAAA": "fd00::1"})
	s := serve(t, func(network string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if seen[q.Type]++; seen[q.Type] == 1 {
			return nil
		}
		return answers(network, q, m)
	})
	d := dialer("", "", s)
	d.conf.timeout = 50 * time.Millisecond
	if got := lookup(t, d, "x.test"); got != "10.0.0.1 fd00::1" {
		t.Errorf("got %s", got)
	}
	silent := serve(t, func(string, dnsmessage.Question, *dnsmessage.Message) [][]byte { return nil })
	d = dialer("", "search a b", silent)
	d.conf.timeout = 10 * time.Millisecond
	_, err := d.LookupHost(t.Context(), "x")
	var de *net.DNSError
	if !errors.As(err, &de) || !de.IsTimeout || !de.IsTemporary || de.IsNotFound {
		t.Errorf("error %#v, want a timeout", err)
	}
	for _, q := range silent.questions() {
		if !strings.HasSuffix(q, " x.a.") {
			t.Errorf("asked %s, though nobody knows whether x.a exists", q)
		}
	}
}

// A server that never answers for AAAA does not hold up the other addresses
// for all its time-outs.
func TestOneFamilyOnly(t *testing.T) {
	t.Parallel()
	answers := zone(map[string]string{"x.test. A": "10.0.0.1"})
	s := serve(t, func(network string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		if q.Type == dnsmessage.TypeAAAA {
			return nil
		}
		return answers(network, q, m)
	})
	d := dialer("", "", s)
	d.conf.timeout, d.conf.attempts = time.Hour, 1
	if got := lookup(t, d, "x.test"); got != "10.0.0.1" {
		t.Errorf("got %s", got)
	}
}

func TestNextServer(t *testing.T) {
	t.Parallel()
	good := serve(t, zone(map[string]string{"x.test. A": "10.0.0.1"}))
	for name, reply := range map[string]func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte{
		"failing": func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte {
			m.RCode = dnsmessage.RCodeServerFailure
			return pack(m)
		},
		"refusing": func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte {
			m.RCode = dnsmessage.RCodeRefused
			return pack(m)
		},
		"lame": func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte {
			m.RecursionAvailable = false
			return pack(m)
		},
		"broken": func(_ string, _ dnsmessage.Question, m *dnsmessage.Message) [][]byte {
			addRecord(m, "x.test.", "10.0.0.2")
			b, _ := m.Pack()
			return [][]byte{b[:len(b)-2]}
		},
	} {
		bad := serve(t, reply)
		if got := lookup(t, dialer("", "options no-aaaa", bad, good), "x.test"); got != "10.0.0.1" {
			t.Errorf("%s, then a good one: got %s", name, got)
		}
		_, err := dialer("", "", bad).LookupHost(t.Context(), "x.test")
		var de *net.DNSError
		if !errors.As(err, &de) || de.IsNotFound || !de.IsTemporary {
			t.Errorf("%s alone: %#v, want a temporary failure", name, err)
		}
	}
	closed := serve(t, nil)
	closed.udp.Close()
	if got := lookup(t, dialer("", "", closed, good), "x.test"); got != "10.0.0.1" {
		t.Errorf("no server, then a good one: got %s", got)
	}
}

func TestLookupCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	s := serve(t, func(string, dnsmessage.Question, *dnsmessage.Message) [][]byte { cancel(why); return nil })
	d := dialer("", "", s)
	d.conf.timeout = time.Hour
	if _, err := d.LookupHost(ctx, "x.test"); !errors.Is(err, why) {
		t.Errorf("error %v, want %v", err, why)
	}
}

func TestDialContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	// Nobody listens at the first addresses.
	s := serve(t, zone(map[string]string{"x.test. A": "127.0.0.2 127.0.0.1", "x.test. AAAA": "::1", "six.test. AAAA": "::1"}))
	d := dialer("127.0.0.1 here", "", s)
	for _, tt := range []struct{ network, addr, err string }{
		{"tcp", "127.0.0.1:" + port, ""}, {"tcp", "localhost:" + port, ""}, {"tcp4", "here:" + port, ""},
		{"tcp", "x.test:" + port, ""}, {"tcp4", "x.test:" + port, ""}, {"tcp", ":" + port, ""},
		{"tcp", "127.0.0.2:" + port, "refused"},
		{"tcp6", "here:" + port, "no address of the family"}, {"tcp4", "six.test:" + port, "no address of the family"},
		{"tcp", "gone.test:" + port, "no such host"}, {"tcp", "here:ssh", "no number"}, {"tcp", "here:99999", "no number"},
		{"tcp", "here", "missing port"}, {"unix", "/run/x", "unknown network"},
	} {
		c, err := d.DialContext(t.Context(), tt.network, tt.addr)
		if c != nil {
			c.Close()
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s %s: error %v, want %q", tt.network, tt.addr, err, tt.err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := d.DialContext(ctx, "tcp", "here:"+port); err == nil {
		c.Close()
		t.Error("connected with a cancelled context")
	}
}

func TestInterleave(t *testing.T) {
	t.Parallel()
	var in []netip.Addr
	for _, s := range []string{"1.0.0.1", "1.0.0.2", "1.0.0.3", "::1", "::2"} {
		in = append(in, netip.MustParseAddr(s))
	}
	var got []string
	for _, a := range interleave(in) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"::1", "1.0.0.1", "::2", "1.0.0.2", "1.0.0.3"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzNetworkFiles(f *testing.F) {
	f.Add("127.0.0.1 localhost\n::1 a b # c\n", "nameserver 1.1.1.1\nsearch a. .b\noptions ndots:9 timeout:0\n", "x.y")
	f.Add("", "options ndots:18446744073709551616 attempts:-1", "..")
	f.Fuzz(func(t *testing.T, hosts, conf, host string) {
		for n, as := range parseHosts([]byte(hosts)) {
			if len(as) == 0 || strings.ContainsAny(n, " \t\n") {
				t.Errorf("hosts: %q: %v", n, as)
			}
		}
		c := parseResolvConf([]byte(conf))
		if len(c.servers) == 0 || len(c.servers) > maxServers || c.attempts < 1 || c.attempts > 5 || c.ndots < 0 || c.ndots > 15 ||
			c.timeout < time.Second || c.timeout > 30*time.Second {
			t.Errorf("out of range: %+v", c)
		}
		for _, name := range c.candidates(host) {
			if q, err := newQuestion(name, dnsmessage.TypeA); err == nil {
				if _, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{q}}).Pack(); err != nil {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
	})
}

func FuzzReply(f *testing.F) {
	q, err := newQuestion("x.test", dnsmessage.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	m := &dnsmessage.Message{Header: dnsmessage.Header{ID: 7, Response: true}, Questions: []dnsmessage.Question{q}}
	addRecord(m, "x.test.", "y.test.")
	addRecord(m, "y.test.", "10.0.0.1")
	f.Add(pack(m)[0])
	f.Fuzz(func(t *testing.T, msg []byte) {
		found, err := parseReply(msg, 7, q)
		if (err == nil) != (len(found) > 0) {
			t.Errorf("%v and %v", found, err)
		}
		for _, a := range found {
			if !a.Is4() {
				t.Errorf("%v is no answer for A", a)
			}
		}
	})
}
