// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
)

// byHost makes several registries of one: read-only.test refuses all that would
// change it, gone.test has nothing, slow.test gives no blob and takes none,
// immutable.test sets no tag again, and skaffold.test speaks with nobody but a
// program that skaffold called.
func byHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "gone.test" && r.URL.Path != "/v2/" {
			http.NotFound(w, r)
			return
		}
		isManifest := strings.Contains(r.URL.Path, "/manifests/")
		switch {
		case r.Host == "slow.test" && (r.Method == http.MethodPost || strings.Contains(r.URL.Path, "/blobs/sha256:")):
			_, _ = io.Copy(io.Discard, r.Body) // until then nothing is seen of the other end
			<-r.Context().Done()
			return
		case r.Host == "immutable.test" && r.Method == http.MethodPut && isManifest && !strings.Contains(r.URL.Path, "sha256:"):
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_INVALID","message":"manifest tag: The repository has enabled tag immutability"}]}`)
			return
		case r.Host == "skaffold.test" && !regexp.MustCompile(`^hako/\S+,skaffold$`).MatchString(r.Header.Get("User-Agent")):
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if r.Host == "read-only.test" && r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"push access is missing"}]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// pushCommands are the commands of scripts about hako push.
func pushCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		// kept runs the command that follows "kept" in a file, with another destination.
		"kept": func(ts *testscript.TestScript, _ bool, args []string) {
			m := regexp.MustCompile(`(?m)^ kept .*:  hako (push .*)$`).FindStringSubmatch(ts.ReadFile(args[0]))
			if m == nil {
				ts.Fatalf("no kept line in %s", args[0])
			}
			words := strings.Fields(m[1])
			for i := range words {
				if words[i] == "-d" {
					words[i+1] = args[1]
				}
			}
			ts.Check(ts.Exec("hako", words...))
		},
		// samedigest compares what follows the @ of the first lines of two files.
		"samedigest": func(ts *testscript.TestScript, _ bool, args []string) {
			at := func(file string) string {
				line, _, _ := strings.Cut(ts.ReadFile(file), "\n")
				_, d, _ := strings.Cut(line, "@")
				return d
			}
			if a, b := at(args[0]), at(args[1]); a != b || a == "" {
				ts.Fatalf("%q and %q", a, b)
			}
		},
		// bydigest diffs the image whose digest is in a file with itself, to see that
		// it is there.
		"bydigest": func(ts *testscript.TestScript, _ bool, args []string) {
			ref := args[0] + "@" + ts.ReadFile(args[1])
			ts.Check(ts.Exec("hako", "diff", ref, ref))
		},
		"olddocker": func(ts *testscript.TestScript, _ bool, args []string) { oldDocker(ts, args[0], args[1]) },
		// spoil changes a byte of the layer of a layout.
		"spoil": func(ts *testscript.TestScript, _ bool, args []string) {
			dir := ts.MkAbs(args[0])
			m := layoutManifest(ts, dir)
			p := filepath.Join(dir, "blobs", "sha256", m.Layers[0].Digest.Encoded())
			b, err := os.ReadFile(p)
			ts.Check(err)
			b[len(b)/2] ^= 1
			ts.Check(os.Remove(p))
			ts.Check(os.WriteFile(p, b, 0o600))
		},
	}
}

func layoutManifest(ts *testscript.TestScript, dir string) (m ocispecs.Manifest) {
	var x ocispecs.Index
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(b, &x))
	b, err = os.ReadFile(filepath.Join(dir, "blobs", "sha256", x.Manifests[0].Digest.Encoded()))
	ts.Check(err)
	ts.Check(json.Unmarshal(b, &m))
	return m
}

// oldDocker makes an archive such as "docker save" wrote before it knew of OCI:
// with layers that are not compressed, and no manifest, of an OCI layout.
func oldDocker(ts *testscript.TestScript, dir, to string) {
	m := layoutManifest(ts, ts.MkAbs(dir))
	blob := func(d ocispecs.Descriptor) []byte {
		b, err := os.ReadFile(filepath.Join(ts.MkAbs(dir), "blobs", "sha256", d.Digest.Encoded()))
		ts.Check(err)
		return b
	}
	zr, err := gzip.NewReader(bytes.NewReader(blob(m.Layers[0])))
	ts.Check(err)
	layer, err := io.ReadAll(zr)
	ts.Check(err)
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"0/layer.tar", layer},
		{"config.json", blob(m.Config)},
		{"manifest.json", []byte(`[{"Config":"config.json","RepoTags":["old:1"],"Layers":["0/layer.tar"]}]`)},
	} {
		ts.Check(tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}))
		_, err := tw.Write(f.data)
		ts.Check(err)
	}
	ts.Check(tw.Close())
	ts.Check(os.WriteFile(ts.MkAbs(to), out.Bytes(), 0o600))
}
