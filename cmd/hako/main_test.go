// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"hako": main, "executor": main, "warmer": main,
		"docker-credential-gcr": main, "docker-credential-ecr-login": main, "docker-credential-acr-env": main,
	})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	proxy := startRegistry(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                commands(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			srv := httptest.NewServer(recorded(env, registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
			env.Defer(srv.Close)
			env.Setenv("REGISTRY", strings.TrimPrefix(srv.URL, "http://"))
			startClouds(env)
			env.Setenv("HTTP_PROXY", proxy)
			env.Setenv("HAKO_WORK_DIR", filepath.Join(env.WorkDir, "work"))
			env.Setenv("HAKO_INSECURE_REGISTRY", "registry.test\nread-only.test\ngone.test\nslow.test\nimmutable.test\nskaffold.test")
			return nil
		},
	})
}

// commands are those of scripts.
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	all := pushCommands()
	// try runs a program that may fail, which depends on the place.
	all["try"] = func(ts *testscript.TestScript, _ bool, args []string) { _ = ts.Exec(args[0], args[1:]...) }
	all["requests"], all["pinned"] = requests, pinned
	return all
}
