// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"

	"hako/test/gitserver"
)

// repositories makes what cases fetch from base.test/git/: app.git with the
// branches main, feature and same, the tags v0 and v1 (annotated) and same,
// and a submodule lib.git, at a commit that is not its newest.
const repositories = `
git init -q -b main lib
(cd lib; mkdir d; echo lib > lib.txt; echo d > d/d.txt; git add .; git commit -qm lib; echo newer > lib.txt; git commit -qam newer)
git clone -q --bare lib lib.git
git init -q -b main app; cd app
mkdir -p dir/deep empty; echo one > a.txt; printf '#!/bin/sh\n' > run.sh; chmod 755 run.sh
ln -s ../a.txt dir/link; ln -s /etc dir/absolute; echo f > dir/deep/f; : > zero
printf '%s\n' '*.crlf eol=crlf' '*.id ident' '*.auto text=auto eol=crlf' > .gitattributes
printf 'a\nb\n' > t.crlf; printf '$Id$\n' > v.id; printf 'a\n\0\n' > nul.auto; printf 'FROM scratch\nCOPY . /ctx/\n' > Dockerfile
git add .; git commit -qm one 2>/dev/null; git tag v0
git -c protocol.file.allow=always submodule --quiet add ../lib.git vendor/lib; (cd vendor/lib; git checkout -q HEAD~1)
git add .; git commit -qm two; git tag -a -m v1 v1
git checkout -q -b feature; echo feature > f.txt; git add .; git commit -qm feature
git checkout -q main; git tag same v0; git branch same feature
cd ..; git clone -q --bare app app.git; git -C app.git symbolic-ref HEAD refs/heads/main`

// gitRepositories makes the repositories below dir and returns their server.
func gitRepositories(ctx context.Context, dir string) (http.Handler, error) {
	root := filepath.Join(dir, "git")
	if _, err := gitserver.Script(ctx, root, repositories); err != nil {
		return nil, fmt.Errorf("make git repositories: %w", err)
	}
	h, err := gitserver.HTTP(ctx, root, true)
	if err != nil {
		return nil, err
	}
	return http.StripPrefix("/git", h), nil
}
