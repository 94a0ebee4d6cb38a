// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxUDPReply is more than the 512 bytes that a server may send to a question
	// without EDNS (RFC 1035, 4.2.1); what is longer is asked for by TCP.
	maxUDPReply = 4096
	maxCNAMEs   = 16
)

var (
	errTruncated = errors.New("truncated reply")
	errStranger  = errors.New("reply to another question")
)

// newQuestion refuses what cannot be a host's name: no server has to be asked.
func newQuestion(name string, t dnsmessage.Type) (dnsmessage.Question, error) {
	none := dnsmessage.Question{}
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return none, errNoSuchHost
		}
	}
	n, err := dnsmessage.NewName(name + ".")
	if err != nil || len(name) > 253 {
		return none, errNoSuchHost
	}
	return dnsmessage.Question{Name: n, Type: t, Class: dnsmessage.ClassINET}, nil
}

// exchange asks one server, by UDP, and by TCP if the answer does not fit.
func (c *resolvConf) exchange(ctx context.Context, server netip.AddrPort, q dnsmessage.Question) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var idBytes [2]byte
	_, _ = rand.Read(idBytes[:]) // does not fail
	id := binary.BigEndian.Uint16(idBytes[:])
	msg := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{q},
	}
	query, err := msg.Pack()
	if err != nil {
		return nil, err
	}
	found, err := []netip.Addr(nil), errTruncated
	if !c.useTCP {
		found, err = overUDP(ctx, server, query, id, q)
	}
	if errors.Is(err, errTruncated) {
		found, err = overTCP(ctx, server, query, id, q)
	}
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server.Addr(), err)
	}
	return found, nil
}

// dialServer connects to a name server; the connection ends with ctx.
func dialServer(ctx context.Context, network string, server netip.AddrPort) (net.Conn, func(), error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); _ = conn.Close() }, nil
}

// overUDP uses a new socket, thus a new random port, for each question. What
// comes and is no reply to it is not from the server, and passed over.
func overUDP(ctx context.Context, server netip.AddrPort, query []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, error) {
	conn, done, err := dialServer(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDPReply)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		found, err := parseReply(buf[:n], id, q)
		if errors.Is(err, errStranger) {
			continue
		}
		return found, err
	}
}

func overTCP(ctx context.Context, server netip.AddrPort, query []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, error) {
	conn, done, err := dialServer(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	if _, err := conn.Write(framed); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	found, err := parseReply(buf, id, q)
	if errors.Is(err, errTruncated) {
		err = fmt.Errorf("%w: truncated over TCP", errBadReply)
	}
	return found, err
}

// parseReply returns the addresses in a reply to q.
func parseReply(msg []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id {
		return nil, errStranger
	}
	got, err := p.Question()
	if err != nil || got.Type != q.Type || got.Class != q.Class || !sameName(got.Name, q.Name) {
		return nil, errStranger
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil, errStranger
	}
	if h.Truncated {
		return nil, errTruncated
	}
	switch h.RCode {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		return nil, errNoSuchHost
	default:
		return nil, fmt.Errorf("%w: %s", errServer, h.RCode)
	}
	found, count, err := parseAnswers(&p, q)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errBadReply, err)
	case len(found) > 0:
		return found, nil
	case count == 0 && !h.Authoritative && !h.RecursionAvailable:
		// It points elsewhere instead of asking there.
		return nil, fmt.Errorf("%w: it does not resolve names for others", errServer)
	}
	return nil, errNoAddress
}

func sameName(a, b dnsmessage.Name) bool { return strings.EqualFold(a.String(), b.String()) }

// parseAnswers collects the addresses of the asked name, through its aliases.
func parseAnswers(p *dnsmessage.Parser, q dnsmessage.Question) (found []netip.Addr, count int, err error) {
	alias := map[string]string{}
	addrs := map[string][]netip.Addr{}
	for ; ; count++ {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return nil, count, err
		}
		owner := strings.ToLower(h.Name.String())
		var a netip.Addr
		switch {
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeCNAME:
			r, rerr := p.CNAMEResource()
			alias[owner], err = strings.ToLower(r.CNAME.String()), rerr
		case h.Class == dnsmessage.ClassINET && h.Type == q.Type && q.Type == dnsmessage.TypeA:
			r, rerr := p.AResource()
			a, err = netip.AddrFrom4(r.A), rerr
		case h.Class == dnsmessage.ClassINET && h.Type == q.Type && q.Type == dnsmessage.TypeAAAA:
			r, rerr := p.AAAAResource()
			a, err = netip.AddrFrom16(r.AAAA).Unmap(), rerr
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, count, err
		}
		if a.IsValid() {
			addrs[owner] = append(addrs[owner], a)
		}
	}
	name := strings.ToLower(q.Name.String())
	for range maxCNAMEs {
		if len(addrs[name]) > 0 {
			return addrs[name], count, nil
		}
		next, ok := alias[name]
		if !ok {
			break
		}
		name = next
	}
	return nil, count, nil
}
