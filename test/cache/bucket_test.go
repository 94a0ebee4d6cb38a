// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hako/test/rig"
)

// A s3World is a world whose cache is in a bucket.
type s3World struct {
	*world
	s3      *front
	gateway *rig.Gateway
	place   string // type=s3 with all attributes
}

func newS3World(t *testing.T) *s3World {
	t.Helper()
	w := newWorld(t)
	g := rig.StartGateway(t, "bkt")
	s := &s3World{world: w, gateway: g, s3: &front{Handler: g}}
	srv := httptest.NewServer(s.s3)
	t.Cleanup(srv.Close)
	s.place = fmt.Sprintf("type=s3,bucket=bkt,region=us-east-1,prefix=team/,use_path_style=true,endpoint_url=%s,access_key_id=%s,secret_access_key=%s,mode=max", srv.URL, g.Key, g.Secret)
	s.use(s.place)
	return s
}

func (s *s3World) use(place string) {
	s.args = []string{"-d", s.addr + "/app:1", "--cache-from=" + place, "--cache-to=" + place}
}

// files returns the names of all objects.
func (s *s3World) files() (list []string) {
	s.t.Helper()
	root := filepath.Join(s.gateway.Dir, "bkt")
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(root, path)
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// noSecrets fails if what a build said, or left in the bucket or the registry, has
// one of the keys.
func (s *s3World) noSecrets(b built, secrets ...string) {
	s.t.Helper()
	secrets = append(secrets, s.gateway.Key, s.gateway.Secret)
	texts := map[string]string{"log": b.log}
	for _, name := range s.files() {
		raw, err := os.ReadFile(filepath.Join(s.gateway.Dir, "bkt", name))
		if err != nil {
			s.t.Fatal(err)
		}
		texts[name] = name + unpacked(s.t, raw)
	}
	for where, text := range texts {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				s.t.Errorf("%s has the secret %q", where, secret)
			}
		}
	}
}

// TestBucketSecondBuild: from empty local state a build that was done before gets
// one object, the document, and writes none.
func TestBucketSecondBuild(t *testing.T) {
	t.Parallel()
	s := newS3World(t)
	s.base("one", "1")
	s.write(fourStages())
	first := s.must(s.build())
	s.noSecrets(first)
	s.reg.take()
	s.s3.take()
	second := s.must(s.build())
	if first.digest != second.digest || first.digest == "" {
		t.Errorf("first %s, second %s", first.digest, second.digest)
	}
	if len(second.steps) != 22 || len(second.misses()) != 0 {
		t.Errorf("%d steps, of which ran %v\n%s", len(second.steps), second.misses(), second.log)
	}
	if n := layerGets(s.reg.take()); n > 1 {
		t.Errorf("%d blobs were fetched from the registry, want the base's config at most", n)
	}
	requests := s.s3.take()
	if len(requests) != 1 || !strings.HasPrefix(requests[0], "GET /bkt/team/manifests/hako-") {
		t.Errorf("the bucket was asked for\n%s\nwant one document", strings.Join(requests, "\n"))
	}
	s.noSecrets(second)
	// A step that changed has what is before it from the bucket.
	files := fourStages()
	s.write(map[string]string{"Dockerfile": files["Dockerfile"] + "RUN cat /big > /copied\n"})
	facts := filepath.Join(t.TempDir(), "facts.json")
	third := s.must(s.build("--verbosity=trace", "--metadata-file="+facts))
	if len(third.misses()) != 1 {
		t.Errorf("lines %v ran\n%s", third.misses(), third.log)
	}
	raw, err := os.ReadFile(facts)
	if err != nil {
		t.Fatal(err)
	}
	third.log += string(raw)
	s.noSecrets(third)
}

// TestBucketForms: what buildx's attributes and the environment say is done.
func TestBucketForms(t *testing.T) {
	t.Parallel()
	s := newS3World(t)
	s.write(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /\nCOPY f /g\n", "f": "f\n"})
	want := s.uncached()
	endpoint := s.place[strings.Index(s.place, "endpoint_url="):]
	endpoint = strings.TrimPrefix(endpoint[:strings.IndexByte(endpoint, ',')], "endpoint_url=")
	s.env = []string{"AWS_ACCESS_KEY_ID=" + s.gateway.Key, "AWS_SECRET_ACCESS_KEY=" + s.gateway.Secret, "S3_ENDPOINT=" + endpoint, "S3_FORCE_PATH_STYLE=true"}
	for _, test := range []struct{ from, to, has string }{
		{"type=s3,bucket=bkt", "type=s3,bucket=bkt,mode=min", "manifests/hako-"},
		{"type=s3,bucket=bkt,prefix=a b/,name=main", "type=s3,bucket=bkt,prefix=a b/,name=main;topic,upload_parallelism=1,touch_refresh=1h", "a b/manifests/hako-topic"},
		{"type=s3,bucket=bkt,name=old;new", "type=s3,bucket=bkt,name=new,ignore-error=true", "manifests/hako-new"},
		{"type=s3,bucket=bkt,blobs_prefix=x/,manifests_prefix=y/", "type=s3,bucket=bkt,blobs_prefix=x/,manifests_prefix=y/", "y/hako-"},
	} {
		for n := range 2 {
			b := s.must(s.run(s.dir, "-d", s.addr+"/app:1", "--cache-from="+test.from, "--cache-to="+test.to))
			if b.digest != want || len(b.misses()) != 2*(1-n) {
				t.Errorf("%s: build %d is %s, want %s; ran %v\n%s", test.from, n+1, b.digest, want, b.misses(), b.log)
			}
		}
		if !slices.ContainsFunc(s.files(), func(name string) bool { return strings.HasPrefix(name, test.has) }) {
			t.Errorf("%s: there is no %s in\n%s", test.to, test.has, strings.Join(s.files(), "\n"))
		}
	}
}

// A bucketFault is a way in which a bucket does not work.
type bucketFault struct {
	name  string
	place func(place string) string // "" changes nothing
	fault func(w http.ResponseWriter, r *http.Request) bool
	warns string
}

func bucketFaults() []bucketFault {
	isBlob := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	}
	isWrite := func(r *http.Request) bool { return r.Method == http.MethodPut }
	refuse := func(status int, code string, matches func(r *http.Request) bool) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return matches(r) && answer(w, status, "<Error><Code>"+code+"</Code><Message>planted-secret-key</Message></Error>")
		}
	}
	all := func(*http.Request) bool { return true }
	instead := func(old, new string) func(string) string {
		return func(place string) string { return strings.Replace(place, old, new, 1) }
	}
	return []bucketFault{
		{name: "wrong key", place: instead("planted-secret-key", "planted-other"), warns: "403 Forbidden (SignatureDoesNotMatch): the server does not accept these keys"},
		{name: "missing bucket", place: instead("bucket=bkt", "bucket=none"), warns: "there is no bucket none"},
		{name: "nobody listens", place: instead("endpoint_url=", "endpoint_url=http://127.0.0.1:1,tag="), warns: "connection refused"},
		{name: "no server's name", place: instead("endpoint_url=", "endpoint_url=http://nowhere.invalid,tag="), warns: "nothing of it is used"},
		{name: "hangs", fault: func(_ http.ResponseWriter, r *http.Request) bool { return stuck(r) }, warns: "nothing moved for 2s"},
		{name: "hangs when written", fault: func(_ http.ResponseWriter, r *http.Request) bool { return isWrite(r) && stuck(r) }, warns: "written"},
		{name: "read only", fault: refuse(403, "AccessDenied", isWrite), warns: "nothing more is written to it: 403 Forbidden (AccessDenied)"},
		{name: "full", fault: refuse(507, "XMinioStorageFull", isWrite), warns: "nothing more is written to it: 507 Insufficient Storage (XMinioStorageFull)"},
		{name: "busy", fault: refuse(503, "SlowDown", all), warns: "503 Service Unavailable (SlowDown)"},
		{name: "no S3", fault: func(w http.ResponseWriter, _ *http.Request) bool { return answer(w, 200, "<html>") }, warns: "its document is broken"},
		{name: "redirects", fault: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://127.0.0.1:1/planted", http.StatusTemporaryRedirect)
			return true
		}, warns: "307 Temporary Redirect"},
		{name: "blobs are gone", fault: refuse(404, "NoSuchKey", isBlob), warns: "building again"},
		{name: "blobs refused", fault: refuse(403, "AccessDenied", isBlob), warns: "building again"},
		{name: "blobs hang", fault: func(_ http.ResponseWriter, r *http.Request) bool { return isBlob(r) && stuck(r) }, warns: "building again"},
		{name: "no conditions", fault: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Header.Get("If-Match")+r.Header.Get("If-None-Match") != "" && answer(w, 501, "<Error><Code>NotImplemented</Code></Error>")
		}},
	}
}

// TestBrokenBucket: whatever the bucket does, the image is right, and one line tells.
func TestBrokenBucket(t *testing.T) {
	t.Parallel()
	const dockerfile = "FROM REG/base:one AS a\nCOPY f /f\nRUN cat /f /f > /g; rm /extra\nFROM REG/base:one\nCOPY --from=a /g /g\nRUN cat /g > /h; : %s\n"
	s := newS3World(t)
	s.base("one", "1")
	s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed"), "f": strings.Repeat("some content\n", 1000)})
	want := s.uncached()
	for i, test := range bucketFaults() {
		place := strings.Replace(s.place, "prefix=team/", fmt.Sprintf("prefix=%d/", i), 1)
		s.use(place)
		s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "first")})
		s.must(s.build())
		s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed")})
		if test.place != nil {
			s.use(test.place(place))
		}
		s.s3.setFault(test.fault)
		began := time.Now()
		b := s.build()
		took := time.Since(began)
		s.s3.setFault(nil)
		if b.err != nil || b.digest != want {
			t.Errorf("%s: %s, want %s: %v\n%s", test.name, b.digest, want, b.err, b.log)
		}
		said := strings.Count(b.log, "] cache s3://")
		if test.warns != "" && !strings.Contains(b.log, test.warns) || test.warns == "" && said > 0 || said > 1 {
			t.Errorf("%s: it said %d lines, want one with %q\n%s", test.name, said, test.warns, b.log)
		}
		s.noSecrets(b, "planted-other")
		t.Logf("%-20s %.1f s", test.name, took.Seconds())
	}
}

// TestBucketBroken: objects that are broken are found out, and written anew.
func TestBucketBroken(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(b []byte) []byte{
		"wrong bytes": func(b []byte) []byte { b[len(b)/2] ^= 0xff; return b },
		"cut off":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":       func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newS3World(t)
			s.base("one", "1")
			const dockerfile = "FROM REG/base:one\nCOPY f /f\nRUN cat /f /f > /g\nRUN cat /g > /h; : %s\n"
			s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "first"), "f": strings.Repeat("some content\n", 1000)})
			s.must(s.build())
			for _, file := range s.files() {
				path := filepath.Join(s.gateway.Dir, "bkt", file)
				raw, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(file, "/blobs/") {
					continue
				}
				if err := os.WriteFile(path, change(raw), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed")})
			want := s.uncached()
			b := s.must(s.build())
			if b.digest != want || !strings.Contains(b.log, "building again") {
				t.Errorf("%s, want %s\n%s", b.digest, want, b.log)
			}
			// What it wrote is right: the next one that needs it finds it.
			s.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "more")})
			if b := s.must(s.build()); strings.Contains(b.log, "building again") || !slices.Equal(b.misses(), []string{"4"}) {
				t.Errorf("lines %v ran\n%s", b.misses(), b.log)
			}
		})
	}
}

// TestBucketWriters: builds that write one document at the same time lose nothing.
func TestBucketWriters(t *testing.T) {
	t.Parallel()
	s := newS3World(t)
	s.atOnce(5, "--cache-from="+s.place, "--cache-to="+s.place)
}

// TestBucketExplains: a miss is explained from a bucket as from a registry; with a
// key for signatures nothing else is believed.
func TestBucketExplains(t *testing.T) {
	t.Parallel()
	s := newS3World(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.write(map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\nARG V=1\nCOPY e$V /e\n", "d/a": "a", "d/b": "b", "e1": "1", "e2": "2"})
	s.must(s.build())
	if b := s.must(s.build("--cache-key-file=" + key)); len(b.misses()) != 2 {
		t.Errorf("what was not signed was taken: lines %v ran", b.misses())
	}
	if b := s.must(s.build("--cache-key-file=" + key)); len(b.misses()) != 0 {
		t.Errorf("what was signed was not taken: lines %v ran", b.misses())
	}
	s.write(map[string]string{"d/a": "changed", "d/new": "new"})
	b := s.must(s.build("--cache-key-file="+key, "--build-arg=V=2"))
	if !strings.Contains(b.why(), "d/a changed") || !strings.Contains(b.why(), "d/new is new") {
		t.Errorf("it says\n%s", b.why())
	}
	s.noSecrets(b, "0123456789abcdef")
	if b := s.must(s.build("--cache-key-file="+key, "--cache-ttl=1ns")); len(b.misses()) != 2 || !strings.Contains(b.why(), "older than") {
		t.Errorf("lines %v ran: %s", b.misses(), b.why())
	}
}
