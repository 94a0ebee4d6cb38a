// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameServer answers on one port of the loopback, by UDP and TCP.
type nameServer struct {
	addr netip.AddrPort
	udp  net.PacketConn
	tcp  net.Listener

	mu    sync.Mutex
	asked []string // "udp A name."
	reply func(network string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte
}

// serve starts a name server. The function reply gets an empty reply and returns
// the packets to send, all of which go out.
func serve(t *testing.T, reply func(network string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte) *nameServer {
	t.Helper()
	s := &nameServer{reply: reply}
	var err error
	for range 10 { // the same port may be taken for the other protocol
		if s.tcp, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if s.udp, err = net.ListenPacket("udp4", s.tcp.Addr().String()); err == nil {
			break
		}
		s.tcp.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.addr = netip.MustParseAddrPort(s.tcp.Addr().String())
	var group sync.WaitGroup
	group.Go(s.serveUDP)
	group.Go(func() { s.serveTCP(&group) })
	t.Cleanup(func() { s.udp.Close(); s.tcp.Close(); group.Wait() })
	return s
}

func (s *nameServer) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		for _, p := range s.answer("udp", buf[:n]) {
			_, _ = s.udp.WriteTo(p, from)
		}
	}
}

func (s *nameServer) serveTCP(group *sync.WaitGroup) {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			defer c.Close()
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			buf := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			for _, p := range s.answer("tcp", buf) {
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
			}
		})
	}
}

func (s *nameServer) answer(network string, b []byte) [][]byte {
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil || len(m.Questions) != 1 || !m.RecursionDesired {
		return nil
	}
	q := m.Questions[0]
	s.mu.Lock()
	s.asked = append(s.asked, network+" "+strings.TrimPrefix(q.Type.String(), "Type")+" "+q.Name.String())
	s.mu.Unlock()
	m.Response, m.RecursionAvailable = true, true
	return s.reply(network, q, &m)
}

// questions returns what was asked so far.
func (s *nameServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func pack(m *dnsmessage.Message) [][]byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return [][]byte{b}
}

// zone answers from a table "name. A" → words: addresses, or the name of an alias.
func zone(table map[string]string) func(string, dnsmessage.Question, *dnsmessage.Message) [][]byte {
	return func(_ string, q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		fill(m, q, table)
		return pack(m)
	}
}

func fill(m *dnsmessage.Message, q dnsmessage.Question, table map[string]string) {
	name, exists := q.Name.String(), false
	for k := range table {
		exists = exists || strings.HasPrefix(k, name+" ")
	}
	if !exists {
		m.RCode = dnsmessage.RCodeNameError
		return
	}
	for w := range strings.FieldsSeq(table[name+" "+strings.TrimPrefix(q.Type.String(), "Type")]) {
		addRecord(m, name, w)
	}
	for w := range strings.FieldsSeq(table[name+" CNAME"]) {
		addRecord(m, name, w)
		q.Name = dnsmessage.MustNewName(w)
		fill(m, q, table)
	}
}

func addRecord(m *dnsmessage.Message, name, w string) {
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: 1}}
	switch a, err := netip.ParseAddr(w); {
	case err != nil:
		r.Body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(w)}
	case a.Is4():
		r.Body = &dnsmessage.AResource{A: a.As4()}
	default:
		r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
	}
	m.Answers = append(m.Answers, r)
}
