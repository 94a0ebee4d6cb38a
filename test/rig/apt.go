// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"path"
	"strings"
)

// A debPackage is a Debian package of the rig's repository: small, and with
// what real ones do to a root.
type debPackage struct {
	name, depends string
	scripts       map[string]string
	conffiles     string
	files         []entry
}

// debPackages are what `apt-get install` finds under http://base.test/apt.
func debPackages() []debPackage {
	return []debPackage{
		{
			name: "hako-lib",
			scripts: map[string]string{
				"preinst":  "groupadd -r -g 801 hakogrp\nuseradd -r -u 800 -g hakogrp -d /var/lib/hako hako\n",
				"postinst": "chown hako:hakogrp /var/lib/hako\nldconfig\nupdate-alternatives --install /usr/bin/hako-alt hako-alt /usr/bin/hako-one 10\n",
			},
			conffiles: "/etc/hako.conf\n",
			files: []entry{
				dir("./etc"), file("./etc/hako.conf", "a = 1\n"),
				dir("./usr"), dir("./usr/bin"), dir("./usr/lib"), dir("./usr/lib/hako"),
				script("./usr/bin/hako-one", "#!/bin/sh\nid\n"), hardlink("./usr/bin/hako-two", "./usr/bin/hako-one"),
				file("./usr/lib/hako/libh.so.1.2", "no library\n"), symlink("./usr/lib/hako/libh.so.1", "libh.so.1.2"),
				dir("./var"), dir("./var/lib"), withMode(0o2770, dir("./var/lib/hako")), file("./var/lib/hako/state", "s\n"),
			},
		},
		{
			name: "hako-tool", depends: "hako-lib",
			scripts: map[string]string{
				"preinst":  "dpkg-divert --add --package hako-tool --rename --divert /usr/bin/hako-one.real /usr/bin/hako-one\n",
				"postinst": "dpkg-statoverride --update --add hako hakogrp 4750 /usr/bin/hako-suid\n",
			},
			files: []entry{
				dir("./usr"), dir("./usr/bin"), script("./usr/bin/hako-one", "#!/bin/sh\necho diverted\n"),
				withMode(0o4755, file("./usr/bin/hako-suid", "#!/bin/sh\n")), owned(0, 8, withMode(0o2755, file("./usr/bin/hako-sgid", "#!/bin/sh\n"))),
			},
		},
	}
}

// aptRepository serves the packages as a flat, unsigned repository.
func aptRepository() (http.Handler, error) {
	served := map[string][]byte{}
	var index strings.Builder
	for _, p := range debPackages() {
		deb, err := p.archive()
		if err != nil {
			return nil, fmt.Errorf("make package %s: %w", p.name, err)
		}
		served[p.name+".deb"] = deb
		fmt.Fprintf(&index, "%sFilename: ./%s.deb\nSize: %d\nSHA256: %x\n\n", p.control(), p.name, len(deb), sha256.Sum256(deb))
	}
	served["Packages"] = []byte(index.String())
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		data, ok := served[path.Base(req.URL.Path)]
		if !ok {
			http.NotFound(w, req)
			return
		}
		w.Header().Set("Last-Modified", contextTime().Format(http.TimeFormat))
		_, _ = w.Write(data)
	}), nil
}

func (p debPackage) control() string {
	text := fmt.Sprintf("Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: Rig <rig@example.com>\nDescription: test package\n", p.name)
	if p.depends != "" {
		text += "Depends: " + p.depends + "\n"
	}
	return text
}

// archive returns the package as deb(5) has it: an ar archive of a version and
// two tars.
func (p debPackage) archive() ([]byte, error) {
	control := []entry{file("./control", p.control())}
	for _, name := range []string{"preinst", "postinst"} {
		if text := p.scripts[name]; text != "" {
			control = append(control, script("./"+name, "#!/bin/sh\nset -e\ntest \"$1\" = install -o \"$1\" = configure\n"+text))
		}
	}
	if p.conffiles != "" {
		control = append(control, file("./conffiles", p.conffiles))
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	add := func(name string, data []byte) {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(data))
		out.Write(data)
		if len(data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	add("debian-binary", []byte("2.0\n"))
	for _, part := range []struct {
		name    string
		entries []entry
	}{{"control.tar.gz", control}, {"data.tar.gz", p.files}} {
		data, err := gzippedTar(part.entries)
		if err != nil {
			return nil, err
		}
		add(part.name, data)
	}
	return out.Bytes(), nil
}

// gzippedTar writes entries without PAX headers, which dpkg does not read.
func gzippedTar(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		h := e.header()
		h.Format = tar.FormatGNU
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
