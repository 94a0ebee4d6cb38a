// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// A requestLog has what a script's registry was asked for.
type requestLog struct {
	mu   sync.Mutex
	list []string
}

func (l *requestLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Sorted(slices.Values(l.list))
	l.list = nil
	return strings.Join(list, "\n")
}

// recorded notes what is asked of next, for the command "requests".
func recorded(env *testscript.Env, next http.Handler) http.Handler {
	log := &requestLog{}
	env.Values["requests"] = log
	return log.wrap(next)
}

func (l *requestLog) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			l.mu.Lock()
			l.list = append(l.list, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v2/"))
			l.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

// requests writes to a file what $REGISTRY was asked for since the last time,
// sorted, a request a line; pings do not count.
func requests(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.Value("requests").(*requestLog).take()
	if text != "" {
		text += "\n"
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// pinned replaces the tag 1 in a Dockerfile by the digest in a file.
func pinned(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.ReplaceAll(ts.ReadFile(args[1]), ":1", "@"+ts.ReadFile(args[0]))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}
