// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// version is that of the documents; others are not read.
	version = 1
	// maxDocument limits what a document may unpack to, and be written with.
	maxDocument = 16 << 20
	// maxPacked limits a document as it is stored: it travels in a manifest,
	// which registries take up to 4 MiB, in base64.
	maxPacked = 1 << 20
	// maxRecords limits the records of a document: with their blobs they have to
	// fit into the manifest.
	maxRecords = 1000
	maxLayers  = 4000
	maxKeys    = 8 // of a record
)

var errDocument = errors.New("its document is broken")

// A document is all that a repository knows of the builds of one Dockerfile.
type document struct {
	Version int        `json:"version"`
	Layers  []docLayer `json:"layers"`
	Records []record   `json:"records"`
}

// A docLayer is one layer that records speak of.
type docLayer struct {
	DiffID      digest.Digest     `json:"diffID"`
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Origin is where the blob is if it is not beside the document: the
	// repository of a base image.
	Origin      string        `json:"origin,omitempty"`
	Created     time.Time     `json:"created,omitzero"`
	Description string        `json:"description,omitempty"`
	Content     digest.Digest `json:"content,omitempty"`
	Index       *docBlob      `json:"index,omitempty"`
}

// A docBlob is a blob beside the document.
type docBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// A record is what one step made.
type record struct {
	Keys []string  `json:"keys"`
	Made time.Time `json:"made"`
	Used time.Time `json:"used"`
	Took int64     `json:"took,omitempty"` // ms
	// Layers are those of the result, bottom first, by number.
	Layers []int `json:"layers"`
	// Step tells which step of the Dockerfile it was: file, stage and position.
	Step string `json:"step,omitempty"`
	Line int    `json:"line,omitempty"`
	// Parts are what the key was computed of. Values are hashed with Salt, so
	// that they can be compared, and not read.
	Salt  string    `json:"salt"`
	Parts []docPart `json:"parts,omitempty"`
	// Sum is over all of the above but Used, with the layers themselves: a record
	// that was taken apart or put together by hand is not believed. With a key
	// it is a MAC, and only who has the key can make one.
	Sum string `json:"sum"`
}

// A docPart is a thing that a key depends on; see solver.Part.
type docPart struct {
	Kind string `json:"k"`
	Name string `json:"n,omitempty"`
	Mac  string `json:"v,omitempty"`
	// Files are "hash name" lines of what was read, packed; or where they are.
	Files []byte   `json:"f,omitempty"`
	Blob  *docBlob `json:"b,omitempty"`
}

// sum computes the record's checksum.
func (r *record) sum(layers []docLayer, key []byte) (string, error) {
	c := *r
	c.Used, c.Sum = time.Time{}, ""
	c.Layers = nil
	own := make([]docLayer, 0, len(r.Layers))
	for _, n := range r.Layers {
		if n < 0 || n >= len(layers) {
			return "", errors.New("a record names a layer that is not there")
		}
		own = append(own, layers[n])
	}
	b, err := json.Marshal(struct {
		Version int
		Record  record
		Layers  []docLayer
	}{version, c, own})
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, append([]byte("hako.cache.record."), key...))
	mac.Write(b)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// mac hashes a value with the record's salt.
func (r *record) mac(value string) string {
	h := hmac.New(sha256.New, []byte(r.Salt))
	h.Write([]byte(value))
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func newSalt() string { return rand.Text() }

// parse reads a document as it is stored. What is wrong with single records
// costs those records.
func parse(packed, key []byte) (*document, error) {
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDocument))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b, err := io.ReadAll(io.LimitReader(z, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("%w: unpack: %w", errDocument, err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("%w: it is too big", errDocument)
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%w: it is not valid JSON", errDocument)
	}
	if d.Version != version {
		return &document{Version: version}, nil // another hako's, to be replaced
	}
	d.Records = slices.DeleteFunc(d.Records, func(r record) bool {
		sum, err := r.sum(d.Layers, key)
		return err != nil || !hmac.Equal([]byte(sum), []byte(r.Sum)) || !d.valid(&r)
	})
	return &d, nil
}

// valid checks what the rest of the program relies on.
func (d *document) valid(r *record) bool {
	for _, n := range r.Layers {
		l := &d.Layers[n]
		if l.DiffID.Validate() != nil || l.Digest.Validate() != nil || l.Size <= 0 || l.Digest.Algorithm() != digest.SHA256 {
			return false
		}
		if l.Origin == "" && (l.Index == nil || l.Content.Validate() != nil) || l.Index != nil && !l.Index.valid() {
			return false
		}
	}
	for _, p := range r.Parts {
		if p.Blob != nil && !p.Blob.valid() {
			return false
		}
	}
	return len(r.Keys) > 0 && len(r.Layers) > 0
}

func (b *docBlob) valid() bool { return b.Digest.Validate() == nil && b.Size > 0 }

// pack returns the document as it is stored. Records that were not used for the
// longest time are left out until it is small enough; d is changed.
func (d *document) pack() ([]byte, error) {
	slices.SortStableFunc(d.Records, func(a, b record) int { return b.Used.Compare(a.Used) })
	d.Records = d.Records[:min(len(d.Records), maxRecords)]
	for {
		d.compact()
		b, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		packed := z.EncodeAll(b, nil)
		if len(b) <= maxDocument && len(packed) <= maxPacked && len(d.Layers) <= maxLayers || len(d.Records) == 0 {
			return packed, nil
		}
		d.Records = d.Records[:len(d.Records)*3/4]
	}
}

// compact drops the layers that no record has, and numbers the others anew.
func (d *document) compact() {
	var kept []docLayer
	numbers := map[int]int{}
	for i := range d.Records {
		r := &d.Records[i]
		r.Layers = slices.Clone(r.Layers)
		for k, n := range r.Layers {
			m, ok := numbers[n]
			if !ok {
				m = len(kept)
				numbers[n] = m
				kept = append(kept, d.Layers[n])
			}
			r.Layers[k] = m
		}
	}
	d.Layers = kept
}

// add puts a record with its layers into the document. One that has a key in
// common gives way if it is older, and its keys live on if it made the same:
// several ways to the same result are all good.
func (d *document) add(r record, layers []docLayer, key []byte) {
	r.Keys, r.Layers = slices.Clone(r.Keys), nil
	for _, l := range layers {
		r.Layers = append(r.Layers, d.number(l))
	}
	keep := d.Records[:0]
	for _, o := range d.Records {
		common := slices.ContainsFunc(o.Keys, func(k string) bool { return slices.Contains(r.Keys, k) })
		switch {
		case !common, o.Step != r.Step && slices.Equal(o.Layers, r.Layers):
			// Two steps that make the same are two records: each explains its own misses.
			keep = append(keep, o)
			continue
		case slices.Equal(o.Layers, r.Layers):
			for _, k := range o.Keys {
				if !slices.Contains(r.Keys, k) {
					r.Keys = append(r.Keys, k)
				}
			}
		default:
			// Another result under one of the keys: the younger is kept there.
			o.Keys = slices.DeleteFunc(slices.Clone(o.Keys), func(k string) bool { return slices.Contains(r.Keys, k) })
			if len(o.Keys) > 0 {
				o.Sum, _ = o.sum(d.Layers, key)
				keep = append(keep, o)
			}
		}
	}
	r.Keys = r.Keys[:min(len(r.Keys), maxKeys)] // its own come first
	r.Sum, _ = r.sum(d.Layers, key)
	d.Records = append(keep, r)
}

// addAll adds all records of another document, which are younger.
func (d *document) addAll(other *document, key []byte) {
	for i := range other.Records {
		r := other.Records[i]
		d.add(r, other.layersOf(&r), key)
	}
}

// drop removes the records that have a key in common with one of the other's.
func (d *document) drop(other *document) {
	for i := range other.Records {
		keys := other.Records[i].Keys
		d.Records = slices.DeleteFunc(d.Records, func(r record) bool {
			return slices.ContainsFunc(r.Keys, func(k string) bool { return slices.Contains(keys, k) })
		})
	}
}

// number returns the layer's number and appends it if it is new.
func (d *document) number(l docLayer) int {
	i := slices.IndexFunc(d.Layers, func(o docLayer) bool {
		return o.DiffID == l.DiffID && o.Digest == l.Digest && o.Origin == l.Origin && (o.Index == nil) == (l.Index == nil)
	})
	if i >= 0 {
		return i
	}
	d.Layers = append(d.Layers, l)
	return len(d.Layers) - 1
}

// find returns the record that has the key.
func (d *document) find(key string) *record {
	for i := range d.Records {
		if slices.Contains(d.Records[i].Keys, key) {
			return &d.Records[i]
		}
	}
	return nil
}

// layersOf returns a record's layers.
func (d *document) layersOf(r *record) []docLayer {
	list := make([]docLayer, 0, len(r.Layers))
	for _, n := range r.Layers {
		list = append(list, d.Layers[n])
	}
	return list
}

// blobs returns descriptors of all that has to stay beside the document.
func (d *document) blobs() []ocispecs.Descriptor {
	var list []ocispecs.Descriptor
	seen := map[digest.Digest]bool{}
	add := func(desc ocispecs.Descriptor) {
		if !seen[desc.Digest] {
			seen[desc.Digest] = true
			list = append(list, desc)
		}
	}
	for _, l := range d.Layers {
		if l.Origin == "" {
			add(ocispecs.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
		}
		if l.Index != nil {
			add(l.Index.descriptor())
		}
	}
	for _, r := range d.Records {
		for _, p := range r.Parts {
			if p.Blob != nil {
				add(p.Blob.descriptor())
			}
		}
	}
	return list
}

// mediaTypeData is that of indexes and lists of files.
const mediaTypeData = "application/vnd.hako.cache.data.v1+zstd"

func (b *docBlob) descriptor() ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: mediaTypeData, Digest: b.Digest, Size: b.Size}
}

// merge adds what other knows and d does not.
func (d *document) merge(other *document, key []byte) {
	for i := range other.Records {
		r := other.Records[i]
		if mine := d.find(r.Keys[0]); mine != nil {
			if r.Used.After(mine.Used) {
				mine.Used = r.Used
			}
			if mine.Sum == r.Sum || mine.Made.After(r.Made) {
				continue
			}
		}
		d.add(r, other.layersOf(&r), key)
	}
}

// packFiles packs lines of hash and name.
func packFiles(lines []string) ([]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.EncodeAll([]byte(strings.Join(lines, "\x00")), nil), nil
}

// unpackFiles is its inverse.
func unpackFiles(b []byte) (map[string]string, error) {
	z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDocument))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := io.ReadAll(io.LimitReader(z, maxDocument))
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for line := range strings.SplitSeq(string(plain), "\x00") {
		if sum, name, ok := strings.Cut(line, " "); ok {
			files[name] = sum
		}
	}
	return files, nil
}
