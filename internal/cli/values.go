// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	units "github.com/docker/go-units"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/build"
)

// buildArgs parses NAME=value; a bare NAME takes the variable's value, and
// stays unset where that is.
func buildArgs(list []string, env build.Env) (map[string]string, error) {
	args := map[string]string{}
	for _, item := range list {
		name, value, hasValue := strings.Cut(item, "=")
		if name == "" {
			return nil, usageErrorf("--build-arg %q: the name is missing", item)
		}
		if !hasValue {
			if value, hasValue = env[name]; !hasValue {
				delete(args, name)
				continue
			}
		}
		args[name] = value
	}
	return args, nil
}

// keyValues parses key=value items of a flag.
func keyValues(flag string, list []string, valueNeeded bool) (map[string]string, error) {
	values := map[string]string{}
	for _, item := range list {
		key, value, ok := strings.Cut(item, "=")
		if key == "" || !ok && valueNeeded {
			return nil, usageErrorf("--%s %q: want key=value", flag, item)
		}
		values[key] = value
	}
	return values, nil
}

// parsePlatforms parses lists like linux/amd64,linux/arm64; "local" is this machine.
func parsePlatforms(list []string) ([]ocispecs.Platform, error) {
	var parsed []ocispecs.Platform
	for _, item := range list {
		for s := range strings.SplitSeq(item, ",") {
			if s = strings.TrimSpace(s); s == "local" {
				parsed = append(parsed, platforms.Normalize(platforms.DefaultSpec()))
				continue
			}
			p, err := platforms.Parse(s)
			if err != nil {
				return nil, usageErrorf("--platform %q: want os/arch[/variant], like linux/arm64", s)
			}
			parsed = append(parsed, platforms.Normalize(p))
		}
	}
	return parsed, nil
}

// fields splits a,b="c,d" as docker does: like a line of CSV.
func fields(flag, item string) ([]string, error) {
	list, err := csv.NewReader(strings.NewReader(item)).Read()
	if err != nil {
		return nil, usageErrorf("--%s %q: %v", flag, item, err)
	}
	return list, nil
}

// parseSecret parses id=ID[,src=FILE|,env=NAME][,type=file|env]. Without a
// source the variable ID is taken, or else the file ID.
func parseSecret(item string, env build.Env) (build.Secret, error) {
	list, err := fields("secret", item)
	if err != nil {
		return build.Secret{}, err
	}
	var id, src, name, kind string
	for _, field := range list {
		key, value, ok := strings.Cut(field, "=")
		switch {
		case !ok && len(list) == 1:
			id = key
		case key == "id":
			id = value
		case key == "src" || key == "source":
			src = value
		case key == "env":
			name = value
		case key == "type" && (value == "file" || value == "env"):
			kind = value
		default:
			return build.Secret{}, usageErrorf("--secret %q: want id=ID,src=FILE or id=ID,env=NAME", secretName(id))
		}
	}
	if id == "" || src != "" && name != "" {
		return build.Secret{}, usageErrorf("--secret %q: want id=ID,src=FILE or id=ID,env=NAME", secretName(id))
	}
	return secretFrom(id, src, name, kind, env)
}

// secretName is what an error says of a secret: nothing that was not its name.
func secretName(id string) string {
	if id == "" {
		return "…"
	}
	return "id=" + id
}

func secretFrom(id, src, name, kind string, env build.Env) (build.Secret, error) {
	if kind == "env" && name == "" {
		name, src = src, ""
	}
	if src != "" {
		return build.Secret{ID: id, File: src}, nil
	}
	_, isSet := env[id]
	if name == "" && (kind == "file" || kind == "" && !isSet) {
		return build.Secret{ID: id, File: id}, nil
	}
	if name == "" {
		name = id
	}
	value, ok := env[name]
	if !ok {
		return build.Secret{}, usageErrorf("--secret id=%s: the environment has no %s", id, name)
	}
	return build.Secret{ID: id, Value: []byte(value)}, nil
}

// parseSSH parses default, ID=SOCKET or ID=KEY,KEY.
func parseSSH(item string, env build.Env) (build.SSHAgent, error) {
	id, paths, ok := strings.Cut(item, "=")
	if id == "" || ok && paths == "" {
		return build.SSHAgent{}, usageErrorf("--ssh %q: want default, ID=SOCKET or ID=KEY[,KEY]", item)
	}
	if ok {
		return build.SSHAgent{ID: id, Paths: strings.Split(paths, ",")}, nil
	}
	socket := env.Get("SSH_AUTH_SOCK")
	if socket == "" {
		return build.SSHAgent{}, usageErrorf("--ssh %s: SSH_AUTH_SOCK is not set; name a socket or keys with --ssh %s=PATH", id, id)
	}
	return build.SSHAgent{ID: id, Paths: []string{socket}}, nil
}

// parseHost parses HOST:IP or HOST=IP; IPv6 addresses may be in brackets.
func parseHost(item string) (build.HostIP, error) {
	host, ip, ok := strings.Cut(item, "=")
	if !ok {
		host, ip, ok = strings.Cut(item, ":")
	}
	if !ok || host == "" {
		return build.HostIP{}, usageErrorf("--add-host %q: want HOST:IP", item)
	}
	if ip == "host-gateway" {
		return build.HostIP{}, usageErrorf("--add-host %q: host-gateway is not supported: there is no network of hako's own to have one", item)
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"))
	if err != nil {
		return build.HostIP{}, usageErrorf("--add-host %q: %q is no IP address", item, ip)
	}
	return build.HostIP{Host: host, IP: addr.String()}, nil
}

// parseUlimit parses NAME=SOFT[:HARD].
func parseUlimit(item string) (build.Ulimit, error) {
	limit, err := units.ParseUlimit(item)
	if err != nil {
		return build.Ulimit{}, usageErrorf("--ulimit %q: want NAME=SOFT[:HARD]: %v", item, err)
	}
	return build.Ulimit{Name: limit.Name, Soft: limit.Soft, Hard: limit.Hard}, nil
}

func parseSize(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, usageErrorf("--%s %q: want a size, like 64m", flag, s)
	}
	return n, nil
}

// parseAnnotation parses [LEVEL[PLATFORM]:]KEY=VALUE; without a level it is for
// the one given. Keys may hold colons, so only the known levels are one.
func parseAnnotation(item, level string) ([]build.Annotation, error) {
	levels := []string{level}
	var platform *ocispecs.Platform
	rest := item
	if prefix, after, ok := strings.Cut(item, ":"); ok {
		if l, p, isLevel := annotationLevels(prefix); isLevel {
			levels, rest = l, after
			if p != "" {
				parsed, err := parsePlatforms([]string{p})
				if err != nil || len(parsed) != 1 {
					return nil, usageErrorf("--annotation %q: %q is no platform", item, p)
				}
				platform = &parsed[0]
			}
		}
	}
	key, value, ok := strings.Cut(rest, "=")
	if !ok || key == "" {
		return nil, usageErrorf("--annotation %q: want [LEVEL:]key=value", item)
	}
	list := make([]build.Annotation, 0, len(levels))
	for _, level := range levels {
		list = append(list, build.Annotation{Level: level, Platform: platform, Key: key, Value: value})
	}
	return list, nil
}

// annotationLevels splits "index,manifest[linux/amd64]" into levels and platform.
func annotationLevels(prefix string) (levels []string, platform string, ok bool) {
	known := []string{"manifest", "index", "manifest-descriptor", "index-descriptor"}
	for part := range strings.SplitSeq(prefix, ",") {
		level, inner, hasPlatform := strings.Cut(part, "[")
		if !slices.Contains(known, level) || hasPlatform && !strings.HasSuffix(inner, "]") {
			return nil, "", false
		}
		if hasPlatform {
			if platform != "" {
				return nil, "", false
			}
			platform = strings.TrimSuffix(inner, "]")
		}
		levels = append(levels, level)
	}
	return levels, platform, true
}

// outputTypes are the kinds of -o that are files; image and registry, which are
// names to push, are handled by applyOutput.
func outputTypes() []string { return []string{"local", "tar", "oci", "docker"} }

// parseOutput parses -o: PATH, "-", type=T,dest=PATH,… or T,dest=PATH,….
func parseOutput(item string) (build.Output, error) {
	list, err := fields("output", item)
	if err != nil {
		return build.Output{}, err
	}
	if len(list) == 1 && !strings.Contains(list[0], "=") {
		return lonelyOutput(list[0])
	}
	out := build.Output{Attrs: map[string]string{}}
	for i, field := range list {
		key, value, ok := strings.Cut(field, "=")
		switch {
		case !ok && i == 0:
			out.Type = key
		case !ok:
			return build.Output{}, usageErrorf("-o %q: want key=value instead of %q", item, field)
		case key == "type":
			out.Type = value
		case key == "dest":
			out.Dest = value
		default:
			out.Attrs[key] = value
		}
	}
	if out.Type == "image" || out.Type == "registry" {
		return out, nil
	}
	if !slices.Contains(outputTypes(), out.Type) {
		return build.Output{}, usageErrorf("-o %q: unknown type %q; there are local, tar, oci, docker, image and registry", item, out.Type)
	}
	if out.Dest == "" {
		return build.Output{}, usageErrorf("-o %q: say where to with dest=PATH", item)
	}
	return out, nil
}

// lonelyOutput is -o PATH. A type's name alone is more likely a slip than a
// directory of that name.
func lonelyOutput(path string) (build.Output, error) {
	switch {
	case path == "-":
		return build.Output{Type: "tar", Dest: "-"}, nil
	case path == "":
		return build.Output{}, usageErrorf("-o: want a path, or type=oci,dest=PATH")
	case slices.Contains(outputTypes(), path), path == "image", path == "registry":
		return build.Output{}, usageErrorf("-o %s: say -o %s,dest=PATH, or -o ./%s for a directory of that name", path, path, path)
	}
	return build.Output{Type: "local", Dest: path}, nil
}

// applyOutput adds one -o to the options.
func applyOutput(opt *build.Options, item string) error {
	out, err := parseOutput(item)
	if err != nil {
		return err
	}
	if out.Type != "image" && out.Type != "registry" {
		opt.Outputs = append(opt.Outputs, out)
		return nil
	}
	push := out.Type == "registry"
	var names []string
	for key, value := range out.Attrs {
		switch key {
		case "name":
			names = append(names, strings.Split(value, ",")...)
		case "push":
			if push, err = strconv.ParseBool(value); err != nil {
				return usageErrorf("-o %q: push=%q is not a boolean", item, value)
			}
		default:
			if err := applyImageAttr(opt, key, value); err != nil {
				return usageErrorf("-o %q: %v", item, err)
			}
		}
	}
	switch {
	case push && len(names) == 0:
		opt.Push = true
	case push:
		opt.Destinations = append(opt.Destinations, names...)
	default:
		opt.Tags = append(opt.Tags, names...)
	}
	return nil
}

// applyImageAttr sets what an attribute of -o type=image says of every output.
func applyImageAttr(opt *build.Options, key, value string) (err error) {
	switch key {
	case "compression":
		opt.Compression = value
	case "compression-level":
		opt.CompressionLevel, err = strconv.Atoi(value)
	case "rewrite-timestamp":
		opt.RewriteTimestamp, err = strconv.ParseBool(value)
	case "oci-mediatypes":
		var b bool
		b, err = strconv.ParseBool(value)
		opt.OCIMediaTypes = &b
	default:
		if name, ok := strings.CutPrefix(key, "annotation."); ok {
			opt.Annotations = append(opt.Annotations, build.Annotation{Level: "manifest", Key: name, Value: value})
			return nil
		}
		return fmt.Errorf("%s is not supported", key)
	}
	return err
}

// parseGit reads the key=value items of --git.
func parseGit(items []string) (g build.GitOptions, err error) {
	for _, item := range items {
		key, value, _ := strings.Cut(item, "=")
		switch key {
		case "branch":
			g.Branch = value
		case "single-branch":
			g.SingleBranch, err = strconv.ParseBool(value)
		case "recurse-submodules":
			g.RecurseSubmodules, err = strconv.ParseBool(value)
		case "insecure-skip-tls":
			g.InsecureSkipTLS, err = strconv.ParseBool(value)
		case "depth":
			if g.Depth, err = strconv.Atoi(value); err == nil && g.Depth < 0 {
				err = strconv.ErrRange
			}
		default:
			return g, usageErrorf("--git=%s: there are branch, single-branch, recurse-submodules, insecure-skip-tls and depth", item)
		}
		if err != nil {
			return g, usageErrorf("--git=%s: %q is no value for %s", item, value, key)
		}
	}
	return g, nil
}
