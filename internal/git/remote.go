// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// agentName is how we introduce ourselves.
const agentName = "git/hako"

// maxRefs bounds the list of refs that is kept.
const maxRefs = 4 << 20

// A Ref is a name for an object on the server.
type Ref struct {
	Name   string // "HEAD" or "refs/…"
	ID     ID
	Peeled ID     // of an annotated tag: what it leads to, else zero
	Target string // of a symbolic ref: the name it stands for, else ""
}

// A conn is a connection to the service upload-pack of one repository.
type conn interface {
	// greeting is what the server says first.
	greeting() *packetReader
	// request sends a message; the answer is to be read to its end, then done
	// is to be called.
	request(ctx context.Context, msg []byte) (answer *packetReader, done func(), err error)
	// Close says good-bye, if that is the custom.
	Close() error
}

// A Remote is a repository on a server. It is for one goroutine.
type Remote struct {
	conn conn
	v2   bool
	caps map[string]string // "" for those without a value
	refs []Ref             // of the first version, which lists them unasked
}

// newRemote reads the server's greeting.
func newRemote(c conn) (*Remote, error) {
	r := &Remote{conn: c, caps: make(map[string]string)}
	if err := r.greet(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if f, ok := r.caps["object-format"]; ok && f != "sha1" {
		return nil, errors.Join(fmt.Errorf("object format %s: %w", f, ErrObjectFormat), c.Close())
	}
	return r, nil
}

func (r *Remote) greet() error {
	p := r.conn.greeting()
	line, kind, err := p.line()
	if err != nil {
		return err
	}
	switch {
	case kind != packetData:
		return nil // an empty repository of an old server
	case line == "version 2":
		r.v2 = true
		return r.greetV2(p)
	case line == "version 1":
		if line, kind, err = p.line(); err != nil {
			return err
		}
	}
	return r.greetV1(p, line, kind)
}

// greetV2 reads capabilities, one a line.
func (r *Remote) greetV2(p *packetReader) error {
	for {
		line, kind, err := p.line()
		if err != nil {
			return err
		}
		if kind != packetData {
			return nil
		}
		r.capability(line)
	}
}

func (r *Remote) capability(s string) {
	name, value, _ := strings.Cut(s, "=")
	if old, ok := r.caps[name]; ok && name == "symref" {
		value = old + " " + value
	}
	r.caps[name] = value
}

// greetV1 reads all refs; the first has the capabilities behind it.
func (r *Remote) greetV1(p *packetReader, line string, kind packetKind) error {
	for first := true; kind == packetData; first = false {
		ref, caps, ok := strings.Cut(line, "\x00")
		if first && ok {
			for _, c := range strings.Fields(caps) {
				r.capability(c)
			}
		}
		if err := r.ref(ref); err != nil {
			return err
		}
		var err error
		if line, kind, err = p.line(); err != nil {
			return err
		}
	}
	for _, s := range strings.Fields(r.caps["symref"]) {
		name, target, _ := strings.Cut(s, ":")
		for i := range r.refs {
			if r.refs[i].Name == name {
				r.refs[i].Target = target
			}
		}
	}
	return nil
}

// ref adds a line "ID NAME" to the list.
func (r *Remote) ref(line string) error {
	digits, name, _ := strings.Cut(line, " ")
	if digits == "shallow" {
		return nil
	}
	id, ok := ParseID(digits)
	if !ok {
		if len(digits) == 64 {
			return ErrObjectFormat
		}
		return fmt.Errorf("the server lists %.80q, which is no ref", line)
	}
	if len(r.refs) >= maxRefs {
		return fmt.Errorf("the server lists more than %d refs", maxRefs)
	}
	if tag, ok := strings.CutSuffix(name, "^{}"); ok {
		if n := len(r.refs) - 1; n >= 0 && r.refs[n].Name == tag {
			r.refs[n].Peeled = id
		}
		return nil
	}
	if !id.IsZero() { // "capabilities^{}" of an empty repository
		r.refs = append(r.refs, Ref{Name: name, ID: id})
	}
	return nil
}

// Refs lists the refs of the server whose names begin with one of the
// prefixes, or all; it may list others too.
func (r *Remote) Refs(ctx context.Context, prefixes ...string) ([]Ref, error) {
	if !r.v2 {
		return r.refs, nil
	}
	var m message
	r.command(&m, "ls-refs")
	m.delim()
	m.linef("peel")
	m.linef("symrefs")
	for _, p := range prefixes {
		m.linef("ref-prefix %s", p)
	}
	m.flush()
	p, done, err := r.conn.request(ctx, m.Bytes())
	if err != nil {
		return nil, err
	}
	defer done()
	var refs []Ref
	for {
		line, kind, err := p.line()
		if err != nil {
			return nil, err
		}
		if kind != packetData {
			return refs, nil
		}
		ref, err := parseRefV2(line)
		if err != nil {
			return nil, err
		}
		if len(refs) >= maxRefs {
			return nil, fmt.Errorf("the server lists more than %d refs", maxRefs)
		}
		if !ref.ID.IsZero() {
			refs = append(refs, ref)
		}
	}
}

// parseRefV2 reads "ID NAME [symref-target:T] [peeled:ID]".
func parseRefV2(line string) (Ref, error) {
	fields := strings.Split(line, " ")
	if len(fields) < 2 {
		return Ref{}, fmt.Errorf("the server lists %.80q, which is no ref", line)
	}
	ref := Ref{Name: fields[1]}
	id, ok := ParseID(fields[0])
	if !ok && fields[0] != "unborn" {
		return Ref{}, fmt.Errorf("the server lists %.80q, which is no ref", line)
	}
	ref.ID = id
	for _, f := range fields[2:] {
		if t, ok := strings.CutPrefix(f, "symref-target:"); ok {
			ref.Target = t
		}
		if p, ok := strings.CutPrefix(f, "peeled:"); ok {
			if ref.Peeled, ok = ParseID(p); !ok {
				return Ref{}, fmt.Errorf("the server lists %.80q, which is no ref", line)
			}
		}
	}
	return ref, nil
}

// command begins a request of the second version.
func (r *Remote) command(m *message, name string) {
	m.linef("command=%s", name)
	if _, ok := r.caps["agent"]; ok {
		m.linef("agent=%s", agentName)
	}
	if f, ok := r.caps["object-format"]; ok {
		m.linef("object-format=%s", f)
	}
}

// GivesAny reports whether the server may give objects that no ref names. In
// the second version of the protocol only trying tells.
func (r *Remote) GivesAny() bool {
	if r.v2 {
		return true
	}
	_, any := r.caps["allow-any-sha1-in-want"]
	_, reachable := r.caps["allow-reachable-sha1-in-want"]
	return any || reachable
}

// IsShallow reports whether the server can leave history out.
func (r *Remote) IsShallow() bool {
	if r.v2 {
		return slices.Contains(strings.Fields(r.caps["fetch"]), "shallow")
	}
	_, ok := r.caps["shallow"]
	return ok
}

// A FetchRequest says what a pack is to hold.
type FetchRequest struct {
	Wants []ID
	Depth int // how many commits deep; 0 is all of the history
	// Progress is given what the server says meanwhile; nil asks for silence.
	Progress func(string)
}

// Fetch hands the pack with the objects that are wanted to receive. It returns
// the commits whose parents were left out.
func (r *Remote) Fetch(ctx context.Context, req FetchRequest, receive func(io.Reader) error) ([]ID, error) {
	if len(req.Wants) == 0 {
		return nil, errors.New("nothing is wanted")
	}
	if r.v2 {
		return r.fetchV2(ctx, req, receive)
	}
	return r.fetchV1(ctx, req, receive)
}

func (r *Remote) fetchV2(ctx context.Context, req FetchRequest, receive func(io.Reader) error) ([]ID, error) {
	var m message
	r.command(&m, "fetch")
	m.delim()
	m.linef("ofs-delta")
	if req.Progress == nil {
		m.linef("no-progress")
	}
	for _, id := range req.Wants {
		m.linef("want %s", id)
	}
	if req.Depth > 0 {
		m.linef("deepen %d", req.Depth)
	}
	m.linef("done")
	m.flush()
	p, done, err := r.conn.request(ctx, m.Bytes())
	if err != nil {
		return nil, err
	}
	defer done()
	var shallow []ID
	for {
		line, kind, err := p.line()
		switch {
		case err != nil:
			return nil, err
		case kind == packetDelim:
		case kind != packetData:
			return nil, errors.New("the server's answer has no pack")
		case line == "packfile":
			return shallow, drain(&sideband{packets: p, progress: req.Progress}, receive)
		default:
			shallow = shallowLine(line, shallow)
		}
	}
}

func shallowLine(line string, list []ID) []ID {
	if s, ok := strings.CutPrefix(line, "shallow "); ok {
		if id, ok := ParseID(s); ok {
			return append(list, id)
		}
	}
	return list
}

func (r *Remote) fetchV1(ctx context.Context, req FetchRequest, receive func(io.Reader) error) ([]ID, error) {
	band := r.chosen("side-band-64k", "side-band")
	caps := strings.Join(slices.DeleteFunc([]string{
		r.chosen("multi_ack_detailed", "multi_ack"), band, r.chosen("ofs-delta"), r.chosen("include-tag"),
	}, func(s string) bool { return s == "" }), " ")
	if _, ok := r.caps["no-progress"]; ok && req.Progress == nil {
		caps += " no-progress"
	}
	if _, ok := r.caps["agent"]; ok {
		caps += " agent=" + agentName
	}
	var m message
	for i, id := range req.Wants {
		if i == 0 {
			m.linef("want %s %s", id, strings.TrimSpace(caps))
			continue
		}
		m.linef("want %s", id)
	}
	if req.Depth > 0 {
		m.linef("deepen %d", req.Depth)
	}
	m.flush()
	m.linef("done")
	p, done, err := r.conn.request(ctx, m.Bytes())
	if err != nil {
		return nil, err
	}
	defer done()
	shallow, err := beforePack(p, req.Depth > 0)
	if err != nil {
		return nil, err
	}
	if band == "" {
		return shallow, receive(p.r)
	}
	return shallow, drain(&sideband{packets: p, progress: req.Progress}, receive)
}

// beforePack reads what precedes a pack in the first version: the shallow
// commits up to a flush, if depth was asked for, and one NAK, since we have
// nothing.
func beforePack(p *packetReader, depth bool) (shallow []ID, err error) {
	for {
		line, kind, err := p.line()
		switch {
		case err != nil:
			return nil, err
		case kind == packetFlush && depth:
			depth = false
		case kind == packetData && depth:
			shallow = shallowLine(line, shallow)
		case kind == packetData && (line == "NAK" || strings.HasPrefix(line, "ACK ")):
			return shallow, nil
		default:
			return nil, fmt.Errorf("the server answers %.80q where NAK was expected", line)
		}
	}
}

// chosen returns the first of the capabilities that the server has.
func (r *Remote) chosen(names ...string) string {
	for _, n := range names {
		if _, ok := r.caps[n]; ok {
			return n
		}
	}
	return ""
}

// drain reads the response to its end, so that what the server says last, which
// may be an error, is heard.
func drain(s *sideband, receive func(io.Reader) error) error {
	if err := receive(s); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, s); err != nil {
		return err
	} else if n > 0 {
		return fmt.Errorf("%d bytes behind the pack", n)
	}
	return nil
}

// Close ends the connection.
func (r *Remote) Close() error { return r.conn.Close() }
