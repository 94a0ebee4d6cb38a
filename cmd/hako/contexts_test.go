// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestContextScripts runs the scripts about build contexts. $WEB serves the files
// of $WORK/srv: below /cut/ only their first half, below /flaky/ so the first
// time, below /private/ for me:word. It is a bucket of Google's and of Amazon's too.
func TestContextScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/contexts",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			web := httptest.NewServer(&halfServer{dir: filepath.Join(env.WorkDir, "srv")})
			env.Defer(web.Close)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("WEB", web.Listener.Addr().String())
			env.Setenv("STORAGE_EMULATOR_HOST", web.Listener.Addr().String())
			env.Setenv("S3_ENDPOINT", web.URL)
			env.Setenv("S3_FORCE_PATH_STYLE", "true")
			env.Setenv("AWS_ACCESS_KEY_ID", "key")
			env.Setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
			env.Setenv("HAKO_WORK_DIR", filepath.Join(env.WorkDir, "work"))
			return nil
		},
	})
}

// A halfServer serves files, and not always all of them.
type halfServer struct {
	dir  string
	mu   sync.Mutex
	seen map[string]bool
}

func (s *halfServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	first, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean(r.URL.Path), "/"), "/")
	switch {
	case first == "private" && (user != "me" || password != "word"):
		w.WriteHeader(http.StatusUnauthorized)
	case first == "storage" || first == "bkt": // /storage/v1/b/BUCKET/o/OBJECT, and /BUCKET/KEY
		http.ServeFile(w, r, filepath.Join(s.dir, path.Base(rest)))
	case first == "cut", first == "flaky" && s.isFirst(rest):
		b, err := os.ReadFile(filepath.Join(s.dir, rest))
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(b[:len(b)/2])
		if first == "flaky" {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler) // in the middle of the answer
		}
	case first == "cut" || first == "flaky" || first == "private":
		http.ServeFile(w, r, filepath.Join(s.dir, rest))
	default:
		http.ServeFile(w, r, filepath.Join(s.dir, path.Clean(r.URL.Path)))
	}
	_, _ = io.Copy(io.Discard, r.Body)
}

func (s *halfServer) isFirst(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	was := s.seen[name]
	s.seen[name] = true
	return !was
}
