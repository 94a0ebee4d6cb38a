// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hako/test/gitserver"
)

// TestGitScripts runs the scripts that need a git server. $GIT is its URL; it
// serves $WORK/srv, and below /private/ only for the user "me" or "token".
func TestGitScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/git",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			h, err := gitserver.HTTP(context.Background(), filepath.Join(env.WorkDir, "srv"), true)
			if err != nil {
				return err
			}
			s := httptest.NewServer(private(h))
			env.Defer(s.Close)
			env.Setenv("GIT", s.Listener.Addr().String())
			env.Setenv("HOME", env.WorkDir)
			env.Vars = append(env.Vars, gitserver.Config()...)
			return nil
		},
	})
}

func private(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		known := user == "me" && password == "word" || user == "token" || password == "bearer"
		if strings.HasPrefix(r.URL.Path, "/private/") && !known {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}
