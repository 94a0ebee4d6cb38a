// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"hako/internal/export"
)

// keptFor is how long an image that could not be pushed stays in the work
// directory, if another has to be kept there later.
const keptFor = 7 * 24 * time.Hour

// keep saves the images that could not be pushed and notes how to push them. It
// is for the end of a build, when all files are back in their places.
func (o *outputs) keep(ctx context.Context) {
	if ctx.Err() != nil {
		return // whoever stopped the build does not want it to go on
	}
	if err := o.verified(); err != nil {
		return // it is not an image that anybody should push
	}
	out := filepath.Join(workDir(o.opt), "work", "kept")
	removeOld(out)
	for _, p := range o.products {
		left := o.notPushed(p)
		if len(left) == 0 {
			continue
		}
		path, err := o.keepOne(ctx, p, out)
		if err != nil {
			o.kept = append(o.kept, "nothing: the image could not be written to "+path+": "+err.Error())
			continue
		}
		o.kept = append(o.kept, "the image is complete in "+path+":  "+pushCommand(o.opt, path, left))
	}
}

// keepOne returns where the image is: in a layout that was asked for, or in a
// directory named after its digest, so that no other build's image gets there.
func (o *outputs) keepOne(ctx context.Context, p *product, out string) (string, error) {
	if path := p.path(o.opt.OCILayoutPath); path != "" {
		return path, nil
	}
	for _, out := range o.opt.Outputs {
		if out.Type == "oci" && out.Dest != "-" {
			return p.path(out.Dest), nil
		}
	}
	path := filepath.Join(out, p.digest().Encoded()[:12])
	err := o.inDir(path, func(dir *os.Root) error {
		return p.bundle.WriteLayout(ctx, dir, export.LayoutOptions{})
	})
	if err != nil {
		_ = os.RemoveAll(path)
		_ = os.Remove(out) // unless there are others in it
	}
	return path, err
}

// notPushed returns the tags of a product that were not set.
func (o *outputs) notPushed(p *product) []name.Tag {
	return slices.DeleteFunc(slices.Clone(p.tags), func(t name.Tag) bool {
		return slices.ContainsFunc(o.pushed, func(d Pushed) bool { return d.Ref == t.Name() })
	})
}

// removeOld removes images that nobody has fetched for long.
func removeOld(out string) {
	list, err := os.ReadDir(out)
	if err != nil {
		return
	}
	for _, e := range list {
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > keptFor {
			_ = os.RemoveAll(filepath.Join(out, e.Name()))
		}
	}
}

// pushCommand returns the command that pushes what lies at path, under the name
// that this program has here and with the flags that say how to reach the
// registry.
func pushCommand(opt *Options, path string, tags []name.Tag) string {
	words := []string{"hako", "push", path}
	if opt.Executor {
		words[0] = "executor"
	}
	for _, t := range tags {
		words = append(words, "-d", displayTag(t))
	}
	r := &opt.Registry
	for _, f := range []struct {
		name string
		isOn bool
	}{{"--insecure", r.Insecure}, {"--skip-tls-verify", r.SkipTLSVerify}} {
		if f.isOn {
			words = append(words, f.name)
		}
	}
	for _, t := range tags {
		host := t.RegistryStr()
		if slices.Contains(r.InsecureRegistries, host) {
			words = append(words, "--insecure-registry="+host)
		}
		if slices.Contains(r.SkipTLSVerifyRegistries, host) {
			words = append(words, "--skip-tls-verify-registry="+host)
		}
		if file := r.Certificates[host]; file != "" {
			words = append(words, "--registry-certificate="+host+"="+file)
		}
		if c, ok := r.ClientCertificates[host]; ok {
			words = append(words, "--registry-client-cert="+host+"="+c.Cert+","+c.Key)
		}
	}
	var unique []string
	for i, w := range words {
		// The same flag for each of several tags of one registry says it once.
		if w == "-d" || !slices.Contains(words[:i], w) {
			unique = append(unique, quote(w))
		}
	}
	return strings.Join(unique, " ")
}

// displayTag spells Docker Hub as people do.
func displayTag(t name.Tag) string {
	return strings.Replace(t.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
}

// quote makes one word for a shell of s.
func quote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:=@,+%", c)
	}
	if s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !plain(c) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
