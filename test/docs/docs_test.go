// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package docs holds the documentation to the truth: every shell block of the
// pages that users read is run.
package docs

import (
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// pages are the documents with blocks to run, relative to the repository.
func pages() []string {
	return []string{"README.md", "CONTRIBUTING.md", "docs/cache.md", "docs/contexts.md", "docs/differences.md", "docs/kaniko.md", "docs/platforms.md", "docs/registries.md", "docs/security.md", "docs/tutorial.md"}
}

const root = "../.."

func TestShellBlocks(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("skipped: needs bash")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	hako := filepath.Join(t.TempDir(), "hako")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", hako, "./cmd/hako")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ran := 0
	for _, page := range pages() {
		for _, block := range shellBlocks(t, page) {
			ran++
			script := strings.ReplaceAll(dropMake(t, page, block), "registry.example.com", strings.TrimPrefix(server.URL, "http://"))
			dir := project(t, hako)
			cmd := exec.CommandContext(t.Context(), bash, "-euo", "pipefail", "-c", script)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s\n%s", page, err, script, out)
			}
		}
	}
	if ran == 0 {
		t.Error("no shell block was found")
	}
}

// shellBlocks returns what stands between ```sh and ```.
func shellBlocks(t *testing.T, page string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(data), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// dropMake checks that the targets a block makes exist, and takes them out:
// CI makes them anyway.
func dropMake(t *testing.T, page, block string) string {
	t.Helper()
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(block) {
		targets, ok := strings.CutPrefix(line, "make ")
		if !ok {
			kept.WriteString(line)
			continue
		}
		for _, target := range strings.Fields(targets) {
			if !bytes.Contains(makefile, []byte("\n"+target+":")) {
				t.Errorf("%s: the Makefile has no target %q", page, target)
			}
		}
	}
	return kept.String()
}

// project is a directory such as the pages speak of.
func project(t *testing.T, hako string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(hako, filepath.Join(dir, "bin", "hako")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch AS app\nCOPY a.txt /\nFROM app AS test\nCOPY a.txt /b.txt\n", ".dockerignore": "bin\n", "a.txt": "a\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
