// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxPacket is the largest packet with its length (gitprotocol-common).
const maxPacket = 65520

// A packetKind tells packets with data from the three without.
type packetKind uint8

const (
	packetData  packetKind = iota
	packetFlush            // 0000: end of a message
	packetDelim            // 0001: end of a section
	packetEnd              // 0002: end of a response, of stateless connections
)

// A packetReader reads packets: four hexadecimal digits of length, which count
// themselves, and data.
type packetReader struct {
	r   *bufio.Reader
	buf [maxPacket]byte
}

func newPacketReader(r io.Reader) *packetReader {
	return &packetReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// next returns a packet's data, which lasts until the next call. A packet that
// says ERR is an error.
func (p *packetReader) next() ([]byte, packetKind, error) {
	if _, err := io.ReadFull(p.r, p.buf[:4]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, err
	}
	n, err := strconv.ParseUint(string(p.buf[:4]), 16, 16)
	if err != nil {
		return nil, 0, fmt.Errorf("packet begins with %q, which is no length", p.buf[:4])
	}
	switch {
	case n < 3:
		return nil, packetFlush + packetKind(n), nil
	case n == 3 || n > maxPacket:
		return nil, 0, fmt.Errorf("packet of length %d", n)
	}
	data := p.buf[:n-4]
	if _, err := io.ReadFull(p.r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, err
	}
	if text, ok := bytes.CutPrefix(data, []byte("ERR ")); ok {
		return nil, 0, &RemoteError{Text: words(text)}
	}
	return data, packetData, nil
}

func words(b []byte) string { return string(bytes.Trim(b, " \r\n\x00")) }

// line returns the next packet without its newline.
func (p *packetReader) line() (string, packetKind, error) {
	data, kind, err := p.next()
	return string(bytes.TrimSuffix(data, []byte("\n"))), kind, err
}

// A message is a sequence of packets to be sent.
type message struct{ bytes.Buffer }

func (m *message) linef(format string, args ...any) {
	data := fmt.Sprintf(format, args...) + "\n"
	fmt.Fprintf(m, "%04x%s", len(data)+4, data)
}

func (m *message) flush() { m.WriteString("0000") }
func (m *message) delim() { m.WriteString("0001") }

// A sideband is the reader of the pack in a response that carries three
// streams: data, progress and a last error (gitprotocol-pack, "Packfile Data").
type sideband struct {
	packets  *packetReader
	progress func(string)
	rest     []byte
	done     bool
}

func (s *sideband) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.done {
			return 0, io.EOF
		}
		data, kind, err := s.packets.next()
		if err != nil {
			return 0, err
		}
		if kind != packetData {
			s.done = true
			continue
		}
		if len(data) == 0 {
			continue
		}
		switch band := data[0]; band {
		case 1:
			s.rest = data[1:]
		case 2:
			if s.progress != nil {
				s.progress(string(data[1:]))
			}
		case 3:
			return 0, &RemoteError{Text: words(data[1:])}
		default:
			return 0, fmt.Errorf("packet for stream %d", band)
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
