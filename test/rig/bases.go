// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// BusyboxPath is where Debian's busybox-static puts the program.
const BusyboxPath = "/bin/busybox"

const basePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pushBases makes the base images that cases start from. Which there are, and
// what is in them, is the table in test/conformance/README.md.
func (r *Rig) pushBases(ctx context.Context) error {
	root, err := busyboxRoot(ctx, "")
	if err != nil {
		return err
	}
	merged, err := busyboxRoot(ctx, "usr/")
	if err != nil {
		return err
	}
	env := v1.ConfigFile{Config: v1.Config{Env: []string{basePath}, Cmd: []string{"sh"}}}
	bases := map[string]imageSpec{
		"busybox":  {layers: [][]entry{root}, config: env},
		"usrmerge": {layers: [][]entry{merged}, config: env},
		"docker":   {layers: [][]entry{root}, config: env, docker: true},
		"odd":      {layers: append([][]entry{root}, oddLayers()...), config: env},
		"rich":     {layers: [][]entry{root}, config: richConfig()},
		"onbuild":  {layers: [][]entry{root}, config: onbuildConfig()},
		"noenv":    {layers: [][]entry{root}},
		"plain":    {layers: [][]entry{{dir("etc"), file("etc/motd", "plain\n"), dir("srv"), file("srv/x", "x\n")}}},
		"zero":     {config: zeroConfig()},
		// A link into a lower layer and a whiteout of what never was: BuildKit
		// on overlayfs fails on both, so no case compares this one.
		"crosslink": {layers: [][]entry{root, {hardlink("data/across", "data/a")}, {file("data/a", "replaced\n"), whiteout("never/there")}}, config: env},
	}
	for ref, spec := range bases {
		img, err := spec.build()
		if err != nil {
			return fmt.Errorf("build base %s: %w", ref, err)
		}
		if err := r.push(ctx, ref, img); err != nil {
			return err
		}
	}
	return r.pushMulti(ctx)
}

// busyboxRoot is a small but whole system: programs as hard links and as
// symlinks, users with and without supplementary groups, and the modes and
// links that a naive copy loses.
func busyboxRoot(ctx context.Context, prefix string) ([]entry, error) {
	program, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	out, err := exec.CommandContext(ctx, BusyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox applets: %w", err)
	}
	entries := []entry{dir("usr"), dir("usr/bin"), dir("usr/sbin")}
	bin := prefix + "bin"
	if prefix == "" {
		entries = append(entries, dir("bin"), dir("sbin"), symlink("lib", "usr/lib"), dir("usr/lib"))
	} else {
		entries = append(entries, symlink("bin", "usr/bin"), symlink("sbin", "usr/sbin"), dir("usr/lib"), symlink("lib", "usr/lib"))
	}
	entries = append(entries, entry{name: bin + "/busybox", data: program, mode: 0o755})
	for i, applet := range strings.Fields(string(out)) {
		switch {
		case applet == "busybox":
		case i%3 == 0:
			entries = append(entries, symlink(bin+"/"+applet, "busybox"))
		default:
			entries = append(entries, withMode(0o755, hardlink(bin+"/"+applet, bin+"/busybox")))
		}
	}
	return append(entries, systemFiles()...), nil
}

func systemFiles() []entry {
	return []entry{
		dir("dev"), dir("proc"), dir("sys"), dir("run"), dir("etc"), dir("home"), dir("var"),
		file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"+
			"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"+
			"app:x:1000:1001:App:/home/app:/bin/sh\n"+
			"svc:x:500:600::/srv/svc:/bin/sh\n"+
			"nohome:x:501:501::/nonexistent:/bin/sh\n"),
		file("etc/group", "root:x:0:\ndaemon:x:1:\nappgrp:x:1001:\nvideo:x:44:app,svc\nextra:x:2000:app\nsvcgrp:x:600:svc\n"),
		withMode(0o640, file("etc/shadow", "root:*:18000:0:99999:7:::\n")),
		withMode(0o700, dir("root")),
		owned(1000, 1001, dir("home/app")),
		owned(1000, 1001, file("home/app/.profile", "# app\n")),
		withMode(0o1777, dir("tmp")),
		withMode(0o1777, dir("var/tmp")),
		owned(0, 44, withMode(0o2775, dir("var/spool"))),
		symlink("var/run", "/run"),
		withMode(0o4755, script("usr/bin/suid", "#!/bin/sh\nid\n")),
		owned(0, 44, withMode(0o2755, file("usr/bin/sgid", "#!/bin/sh\nid\n"))),
		dir("data"), dir("data/sub"), file("data/a", "linked\n"), hardlink("data/b", "data/a"),
		file("data/old", "old\n"), withMode(0o600, owned(500, 600, file("data/private", "private\n"))),
		file("data/sub/one", "1\n"), file("data/sub/two", "2\n"), dir("data/emptydir"),
		dir("opt"), dir("opt/real"), file("opt/real/file", "real\n"), symlink("opt/link", "real"),
		symlink("opt/abs", "/srv/target"), symlink("opt/up", "../data"), symlink("opt/dangling", "/nowhere/at/all"),
		dir("srv"), owned(500, 600, withMode(0o750, dir("srv/target"))), file("srv/target/kept", "kept\n"),
	}
}

// oddLayers is what real images hold and small ones never do.
func oddLayers() [][]entry {
	// cap_net_raw=ep, revision 2, as setcap writes it.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return [][]entry{
		{
			dir("odd"), dir("odd/dev"),
			{name: "odd/dev/null", device: '3', major: 1, minor: 3, mode: 0o666},
			{name: "odd/dev/loop", device: '4', major: 7, minor: 0, mode: 0o660, gid: 6},
			{name: "odd/pipe", device: '6', mode: 0o620},
			withMode(0o3777, dir("odd/sticky")), withMode(0o6755, file("odd/ugid", "ugid\n")),
			withXattr("security.capability", capability, script("odd/ping", "#!/bin/sh\n")),
			withXattr("user.note", "hello", file("odd/noted", "noted\n")),
			dir("odd/tree"), dir("odd/tree/deep"), file("odd/tree/deep/one", "one\n"), file("odd/tree/two", "two\n"),
			dir("odd/opaque"), file("odd/opaque/hidden1", "1\n"), dir("odd/opaque/dir"), file("odd/opaque/dir/hidden2", "2\n"),
			file("odd/gone", "gone\n"), dir("odd/becomesfile"), file("odd/becomesfile/x", "x\n"), file("odd/becomesdir", "file\n"),
			file("odd/h1", "hard\n"), hardlink("odd/h2", "odd/h1"), symlink("odd/dirlink", "tree"),
			file("odd/loop-a", "a\n"), symlink("odd/self", "self"),
			entryAt("odd/ancient", time.Unix(0, 0)), entryAt("odd/future", time.Date(2045, 1, 1, 0, 0, 0, 0, time.UTC)),
			file("odd/name with space", "s\n"), file("odd/ünï", "u\n"), file("odd/"+strings.Repeat("n", 200), "long\n"),
		},
		{
			dir("odd"), opaque("odd/opaque"), dir("odd/opaque"), file("odd/opaque/shown", "shown\n"),
			whiteout("odd/gone"), whiteout("odd/tree/deep"), dir("odd/tree"), file("odd/tree/three", "3\n"),
			whiteout("odd/becomesfile"), file("odd/becomesfile", "file now\n"),
			whiteout("odd/becomesdir"), dir("odd/becomesdir"), file("odd/becomesdir/in", "in\n"),
			// A link to a file of the layer below, written as layers should be:
			// the file again, then the link. The first name is replaced in the
			// next layer; the link keeps the old contents.
			file("odd/h1", "hard\n"), hardlink("odd/h3", "odd/h1"),
		},
		{
			file("odd/h1", "replaced\n"),
			dir("odd/tree/deep"), file("odd/tree/deep/back", "back\n"),
			file("odd/gone", "gone and back\n"), whiteout("odd/opaque/shown"), file("odd/opaque/last", "last\n"),
			whiteout("data/sub"),
		},
	}
}

func entryAt(name string, t time.Time) entry {
	e := file(name, name+"\n")
	e.time = t
	return e
}

func richConfig() v1.ConfigFile {
	return v1.ConfigFile{
		Author: "base author",
		Config: v1.Config{
			Env:          []string{basePath, "BASE=1", "OVERRIDE=base", "EMPTY="},
			Entrypoint:   []string{"/bin/sh", "-c"},
			Cmd:          []string{"echo base"},
			User:         "app",
			WorkingDir:   "/home/app",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Volumes:      map[string]struct{}{"/base-volume": {}},
			Labels:       map[string]string{"base": "yes", "both": "base"},
			StopSignal:   "SIGQUIT",
			Shell:        []string{"/bin/sh", "-ec"},
			Healthcheck:  &v1.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Minute},
		},
	}
}

func onbuildConfig() v1.ConfigFile {
	return v1.ConfigFile{Config: v1.Config{
		Env:     []string{basePath},
		OnBuild: []string{"ENV TRIGGERED=yes", "COPY a.txt /triggered/", "WORKDIR /triggered"},
	}}
}

// zeroConfig has no layer and only empty history: the frontend takes it for
// scratch.
func zeroConfig() v1.ConfigFile {
	return v1.ConfigFile{
		Config:  v1.Config{Env: []string{"ZERO=1", basePath}},
		History: []v1.History{{CreatedBy: "ENV ZERO=1", EmptyLayer: true, Created: v1.Time{Time: baseTime()}}},
	}
}

// pushMulti pushes an index whose two images differ in a file.
func (r *Rig) pushMulti(ctx context.Context) error {
	var idx v1.ImageIndex = empty.Index
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}} {
		spec := imageSpec{
			layers: [][]entry{{dir("etc"), file("etc/arch", p.Architecture+"\n")}},
			config: v1.ConfigFile{Architecture: p.Architecture, Variant: p.Variant},
		}
		img, err := spec.build()
		if err != nil {
			return fmt.Errorf("build base multi: %w", err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	return r.pushIndex(ctx, "multi", idx)
}
