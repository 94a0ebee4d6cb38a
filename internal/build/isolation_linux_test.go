// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hako/internal/sandbox"
)

// Nothing is moved on a machine that shows no sign of being a container, unless
// --force says so.
func TestForce(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	if inContainer(Env{}) || sandbox.Possible(work) != nil {
		t.Skip("skipped: needs a machine that is no container, and root")
	}
	inPlace := func(opt *Options) error {
		opt.WorkDir, opt.Isolation, opt.Env = work, isolationInPlace, Env{}
		return (&room{opt: opt}).inPlace()
	}
	err := inPlace(&Options{})
	none, ok := errors.AsType[*NoSandboxError](err)
	if !ok || !slices.ContainsFunc(none.Remedy, func(s string) bool { return strings.HasPrefix(s, "--force") }) {
		t.Errorf("without it: %v, want an error whose remedy is --force", err)
	}
	if err := inPlace(&Options{Force: true}); err != nil {
		t.Errorf("with it: %v", err)
	}
}
