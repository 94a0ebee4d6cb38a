// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Docker writes into dir a program docker whose "run" gives the container an
// ordinary pod's rights and the arguments more, and, for the names of images, the
// ones that stand for them. It has no terminal, so -t is left out.
func (p *Podman) Docker(dir string, images map[string]string, more ...string) error {
	var b strings.Builder
	b.WriteString("#!/bin/bash\nset -eu\n[[ $1 == run ]]\nshift\nargs=()\nfor a; do\n  case $a in\n  -ti | -it) a=-i ;;\n")
	for name, ref := range images {
		fmt.Fprintf(&b, "  %s) a=%s ;;\n", quote(name), quote(ref))
	}
	b.WriteString("  esac\n  args+=(\"$a\")\ndone\n")
	for _, v := range p.env() {
		b.WriteString("export " + quote(v) + "\n")
	}
	b.WriteString("exec podman")
	for _, a := range slices.Concat(p.global(), []string{"run", "--rm"}, p.rights(), more) {
		b.WriteString(" " + quote(a))
	}
	b.WriteString(" \"${args[@]}\"\n")
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "docker"), []byte(b.String()), 0o755))
}

// quote makes one word of a shell of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
