// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"path/filepath"
	"testing"
)

// TestWorkDir: overlays are mounted from within the work directory, which so
// needs a name that is good everywhere.
func TestWorkDir(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{"": "", "/w": "/w", "w": filepath.Join(here, "w"), "./w/../v": filepath.Join(here, "v")} {
		opt, err := (&buildValues{workDir: given, verbosity: "info"}).placeOptions(&App{})
		if err != nil || opt.WorkDir != want {
			t.Errorf("--work-dir=%s: %q %v, want %q", given, opt.WorkDir, err, want)
		}
	}
}
