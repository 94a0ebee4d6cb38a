// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"

	"hako/internal/build"
)

// addMirrorFlags defines where base images come from.
func (v *registryValues) addMirrorFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&v.mirrors, "registry-mirror", nil, "pull images of Docker Hub from `HOST[/PREFIX]` first (repeatable)")
	f.StringArrayVar(&v.maps, "registry-map", nil, "pull images of a registry from another first, `HOST=HOST[/PREFIX][;…]` (repeatable)")
	f.BoolVar(&v.noFallback, "skip-default-registry-fallback", false, "do not ask a registry itself if it has mirrors")
	f.StringArrayVar(&v.hostsDirs, "hosts-dir", nil, "`DIR` with containerd's hosts.toml files, such as /etc/containerd/certs.d (repeatable)")
}

// addMirrorEnv adds kaniko's variables to what the flags say, as kaniko does.
func (v *registryValues) addMirrorEnv(env build.Env) {
	if s := env.Get("KANIKO_REGISTRY_MIRROR"); s != "" {
		v.mirrors = append(v.mirrors, s)
	}
	if s := env.Get("KANIKO_REGISTRY_MAP"); s != "" {
		v.maps = append(v.maps, s)
	}
}

// registryMirrors reads maps, and mirrors, which are those of Docker Hub.
func registryMirrors(maps, mirrors []string) (map[string][]string, error) {
	var out map[string][]string
	add := func(from, to string) error {
		reg, err := name.NewRegistry(from)
		if err != nil {
			return err
		}
		if out == nil {
			out = map[string][]string{}
		}
		out[reg.RegistryStr()] = append(out[reg.RegistryStr()], to)
		return nil
	}
	for _, item := range maps {
		for pair := range strings.SplitSeq(item, ";") {
			if pair = strings.TrimSpace(pair); pair == "" {
				continue
			}
			from, to, ok := strings.Cut(pair, "=")
			if !ok || from == "" || to == "" {
				return nil, usageErrorf("--registry-map=%s: want HOST=HOST[/PREFIX], several between semicolons", item)
			}
			if err := add(from, to); err != nil {
				return nil, usageErrorf("--registry-map=%s: %v", item, err)
			}
		}
	}
	for _, m := range mirrors {
		if m = strings.TrimSpace(m); m == "" {
			continue
		}
		if strings.Contains(m, "=") {
			return nil, usageErrorf("--registry-mirror=%s: want HOST[/PREFIX]; --registry-map has mirrors of other registries than Docker Hub", m)
		}
		if err := add(name.DefaultRegistry, m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// clientCertificates reads HOST=CERT,KEY.
func clientCertificates(items []string) (map[string]build.CertificateFiles, error) {
	var out map[string]build.CertificateFiles
	for _, item := range items {
		host, files, _ := strings.Cut(item, "=")
		cert, key, ok := strings.Cut(files, ",")
		if !ok || host == "" || cert == "" || key == "" || strings.Contains(key, ",") {
			return nil, usageErrorf("--registry-client-cert=%s: want HOST=CERT,KEY, two files", item)
		}
		if out == nil {
			out = map[string]build.CertificateFiles{}
		}
		out[host] = build.CertificateFiles{Cert: cert, Key: key}
	}
	return out, nil
}
