// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func aLayer(name string) docLayer {
	return docLayer{
		DiffID: digest.FromString("diff " + name), MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString("blob " + name), Size: 1000,
		Created: time.Unix(1700000000, 0).UTC(), Description: name, Content: digest.FromString("content " + name),
		Index: &docBlob{Digest: digest.FromString("index " + name), Size: 10},
	}
}

func aRecord(day int, keys ...string) record {
	at := time.Unix(1700000000+int64(day)*86400, 0).UTC()
	return record{Keys: keys, Made: at, Used: at, Step: "Dockerfile build 1", Line: 3, Salt: "salt", Parts: []docPart{{Kind: partText, Name: "RUN make"}}}
}

func packed(t testing.TB, d *document) []byte {
	t.Helper()
	b, err := d.pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parsed(t testing.TB, b, key []byte) *document {
	t.Helper()
	d, err := parse(b, key)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDocumentKeepsWhatIsPutIn(t *testing.T) {
	t.Parallel()
	d := &document{Version: version}
	base := docLayer{DiffID: digest.FromString("base"), MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString("b"), Size: 5, Origin: "r/debian"}
	d.add(aRecord(1, "a"), []docLayer{base, aLayer("one")}, nil)
	d.add(aRecord(2, "b", "b2"), []docLayer{base, aLayer("one"), aLayer("two")}, nil)
	got := parsed(t, packed(t, d), nil)
	if len(got.Layers) != 3 {
		t.Errorf("%d layers, want 3: those that records share are there once", len(got.Layers))
	}
	for key, want := range map[string][]docLayer{"a": {base, aLayer("one")}, "b2": {base, aLayer("one"), aLayer("two")}} {
		r := got.find(key)
		if r == nil {
			t.Fatalf("%s is gone", key)
		}
		if diff := cmp.Diff(want, got.layersOf(r)); diff != "" {
			t.Errorf("layers of %s (-want +got):\n%s", key, diff)
		}
	}
	if n := len(got.blobs()); n != 4 {
		t.Errorf("%d blobs, want 4: two layers and two indexes, and not the base image's layer", n)
	}
}

func TestDocumentAdd(t *testing.T) {
	t.Parallel()
	d := &document{Version: version}
	d.add(aRecord(1, "def", "con"), []docLayer{aLayer("one")}, nil)
	// Another way to the same result adds its key, and made again it is young again.
	d.add(aRecord(5, "def2", "con"), []docLayer{aLayer("one")}, nil)
	if len(d.Records) != 1 || !slices.Equal(d.Records[0].Keys, []string{"def2", "con", "def"}) || !d.Records[0].Made.Equal(aRecord(5).Made) {
		t.Errorf("records = %+v", d.Records)
	}
	// Another result under a key takes the key over, and no other.
	d.add(aRecord(6, "def"), []docLayer{aLayer("new")}, nil)
	if r := d.find("def"); d.layersOf(r)[0].Description != "new" {
		t.Errorf("def gives %v", d.layersOf(r))
	}
	if r := d.find("con"); d.layersOf(r)[0].Description != "one" {
		t.Errorf("con gives %v", d.layersOf(r))
	}
	if len(parsed(t, packed(t, d), nil).Records) != 2 {
		t.Error("a checksum is wrong after keys moved")
	}
}

func TestDocumentForged(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef")
	fresh := func(key []byte) *document {
		d := &document{Version: version}
		d.add(aRecord(1, "a"), []docLayer{aLayer("one")}, key)
		d.add(aRecord(1, "b"), []docLayer{aLayer("two")}, key)
		return d
	}
	tests := map[string]func(d *document){
		"another key":       func(d *document) { d.Records[0].Keys[0] = "x" },
		"a key more":        func(d *document) { d.Records[0].Keys = append(d.Records[0].Keys, "x") },
		"another's layers":  func(d *document) { d.Records[0].Layers = d.Records[1].Layers },
		"another's result":  func(d *document) { d.Records[0].Layers, d.Records[0].Sum = d.Records[1].Layers, d.Records[1].Sum },
		"another blob":      func(d *document) { d.Layers[0].Digest = digest.FromString("evil") },
		"another diffID":    func(d *document) { d.Layers[0].DiffID = digest.FromString("evil") },
		"another index":     func(d *document) { d.Layers[0].Index.Digest = digest.FromString("evil") },
		"another origin":    func(d *document) { d.Layers[0].Origin = "evil/repo" },
		"a younger one":     func(d *document) { d.Records[0].Made = d.Records[0].Made.Add(time.Hour) },
		"a layer not there": func(d *document) { d.Records[0].Layers = []int{7} },
		"a negative layer":  func(d *document) { d.Records[0].Layers = []int{-1} },
		"no layers":         func(d *document) { d.Records[0].Layers = nil },
	}
	for name, forge := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, key := range [][]byte{nil, secret} {
				d := fresh(key)
				forge(d)
				got := parsed(t, marshalled(t, d), key)
				for _, r := range got.Records {
					if r.Keys[0] != "b" || len(r.Keys) > 1 {
						t.Errorf("believed with key %q: %+v", key, r)
					}
				}
			}
		})
	}
	if n := len(parsed(t, packed(t, fresh(nil)), secret).Records); n != 0 {
		t.Errorf("%d records without a signature were believed", n)
	}
	if n := len(parsed(t, packed(t, fresh(secret)), []byte("another key of 16")).Records); n != 0 {
		t.Errorf("%d records of another key were believed", n)
	}
	if n := len(parsed(t, packed(t, fresh(secret)), secret).Records); n != 2 {
		t.Errorf("%d of 2 signed records were believed", n)
	}
}

// marshalled packs d as it is, without putting its numbers in order.
func marshalled(t *testing.T, d *document) []byte {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(b, nil)
}

func TestDocumentStaysSmall(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	d := &document{Version: version}
	for i := range 2 * maxRecords {
		r := aRecord(i, fmt.Sprint("key", i))
		noise := make([]byte, 400)
		for k := range noise {
			noise[k] = byte(rng.Uint32())
		}
		r.Parts = append(r.Parts, docPart{Kind: partFiles, Name: "context", Files: noise})
		r.Used = r.Used.Add(time.Duration(i%7) * time.Hour)
		d.add(r, []docLayer{aLayer(fmt.Sprint(i))}, nil)
	}
	b := packed(t, d)
	if len(b) > maxPacked {
		t.Errorf("%d bytes, more than %d", len(b), maxPacked)
	}
	got := parsed(t, b, nil)
	if n := len(got.Records); n == 0 || n > maxRecords || len(got.Layers) != n {
		t.Errorf("%d records, %d layers", n, len(got.Layers))
	}
	if got.find(fmt.Sprint("key", 2*maxRecords-1)) == nil {
		t.Error("the one used last is gone")
	}
	if got.find("key0") != nil {
		t.Error("the one not used for longest is there")
	}
}

// TestMerge: whoever writes last, what both knew is there.
func TestMerge(t *testing.T) {
	t.Parallel()
	mine, theirs := &document{Version: version}, &document{Version: version}
	mine.add(aRecord(1, "both"), []docLayer{aLayer("both")}, nil)
	mine.add(aRecord(2, "mine"), []docLayer{aLayer("both"), aLayer("mine")}, nil)
	theirs.add(aRecord(3, "both"), []docLayer{aLayer("younger")}, nil)
	theirs.add(aRecord(2, "theirs"), []docLayer{aLayer("theirs")}, nil)
	mine.merge(theirs, nil)
	got := parsed(t, packed(t, mine), nil)
	for key, top := range map[string]string{"both": "younger", "mine": "mine", "theirs": "theirs"} {
		r := got.find(key)
		if r == nil {
			t.Errorf("%s is gone", key)
			continue
		}
		if l := got.layersOf(r); l[len(l)-1].Description != top {
			t.Errorf("%s gives %s, want %s", key, l[len(l)-1].Description, top)
		}
	}
}

// TestTwoStepsOneResult: a step that makes what another one makes does not take
// its place.
func TestTwoStepsOneResult(t *testing.T) {
	t.Parallel()
	d := &document{Version: version}
	other := aRecord(2, "def2", "con")
	other.Step = "Dockerfile final 1"
	d.add(aRecord(1, "def", "con"), []docLayer{aLayer("one")}, nil)
	d.add(other, []docLayer{aLayer("one")}, nil)
	again := &document{Version: version}
	again.merge(parsed(t, packed(t, d), nil), nil)
	if len(again.Records) != 2 || again.find("def") == nil || again.find("def2") == nil {
		t.Errorf("%+v", again.Records)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	d, wrong := &document{Version: version}, &document{Version: version}
	d.add(aRecord(1, "good"), []docLayer{aLayer("good")}, nil)
	wrong.add(aRecord(2, "bad", "bad2"), []docLayer{aLayer("bad")}, nil)
	d.addAll(wrong, nil)
	d.drop(wrong)
	got := parsed(t, packed(t, d), nil)
	if len(got.Records) != 1 || got.find("good") == nil || len(got.Layers) != 1 {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	d := &document{Version: version}
	d.add(aRecord(1, "a"), []docLayer{aLayer("one")}, nil)
	f.Add(packed(f, d))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parse(b, nil)
		if err != nil {
			return
		}
		again := parsed(t, packed(t, d), nil)
		if len(again.Records) > len(d.Records) {
			t.Errorf("%d records became %d", len(d.Records), len(again.Records))
		}
	})
}

func FuzzUnpackFiles(f *testing.F) {
	b, err := packFiles([]string{"0011 a b", "22 c"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = unpackFiles(b) })
}

func FuzzDocumentOf(f *testing.F) {
	_, raw, err := manifestFor([]byte("doc"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		fetch := func(ocispecs.Descriptor) ([]byte, error) { return []byte("fetched"), nil }
		doc, err := documentOf(raw, fetch)
		if err == nil && !bytes.Equal(doc, []byte("fetched")) && !bytes.Contains(raw, []byte("data")) {
			t.Errorf("a document %q out of nowhere", doc)
		}
	})
}
