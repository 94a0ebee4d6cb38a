// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"hako/internal/keychain"
)

// An AuthExplanation is what was found out about the credentials for a registry
// or repository. It holds no secret.
type AuthExplanation struct {
	Target   string
	Absent   []string // what would be a source but is not there, "name (why)"
	Findings []keychain.Finding
}

// ExplainAuth asks the sources of credentials as a build does.
func ExplainAuth(ctx context.Context, r Registry, env Env, target string) (*AuthExplanation, error) {
	res, err := parseAuthTarget(target)
	if err != nil {
		return nil, err
	}
	n, err := openNetwork(env)
	if err != nil {
		return nil, err
	}
	keys, err := openKeychain(&Options{Registry: r, Env: env}, n, nil)
	if err != nil {
		return nil, err
	}
	defer keys.Close() //nolint:errcheck // only read from
	return &AuthExplanation{Target: target, Absent: keys.Absent(), Findings: keys.Explain(ctx, res)}, nil
}

// AskHelper answers as the credential helper docker-credential-<name> does that
// hako stands in for. Without credentials the error is keychain.ErrNoCredentials.
func AskHelper(ctx context.Context, env Env, helper, server string) ([]byte, error) {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	res, err := name.NewRegistry(host)
	if err != nil || host == "" {
		return nil, fmt.Errorf("%q is no server", server)
	}
	n, err := openNetwork(env)
	if err != nil {
		return nil, err
	}
	k := newKeychainOpener(&Options{Env: env}, n, nil)
	defer k.close() //nolint:errcheck // only read from
	s := k.source(keychain.HelperNames()[helper])
	if s == nil {
		return nil, fmt.Errorf("docker-credential-%s is not known", helper)
	}
	c, err := s.Find(ctx, res)
	if err != nil {
		return nil, err
	}
	return keychain.WriteHelper(c, server)
}

// parseAuthTarget reads "host" or "host/repository", with or without a tag. A
// name without a dot, a port or a path is a host, not a repository of Docker Hub.
func parseAuthTarget(s string) (authn.Resource, error) {
	s = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://"), "/")
	var res authn.Resource
	var err error
	if strings.Contains(s, "/") {
		var ref name.Reference
		if ref, err = name.ParseReference(s); err == nil {
			res = ref.Context()
		}
	} else {
		res, err = name.NewRegistry(s)
	}
	if err != nil || s == "" {
		return nil, fmt.Errorf("%q is neither a registry's host nor a repository", s)
	}
	return res, nil
}

// Login writes credentials into docker's config.json and returns its path. The
// note, if any, says what keeps them from being used.
func Login(env Env, host, user, password string) (path, note string, err error) {
	if _, err := parseAuthTarget(host); err != nil {
		return "", "", err
	}
	path = dockerConfigPath(env)
	if path == "" {
		return "", "", errors.New("write credentials: neither DOCKER_CONFIG nor HOME says where")
	}
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return "", "", fmt.Errorf("write credentials: %s is a directory", path)
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", unreadable(err)
	}
	b, note, err := keychain.AddAuth(old, path, host, user, password)
	if err != nil {
		return "", "", err
	}
	if err := writePrivate(path, b); err != nil {
		return "", "", fmt.Errorf("write credentials: %w", err)
	}
	if env.Get("DOCKER_AUTH_CONFIG") != "" {
		note = strings.TrimPrefix(note+"\nnote: what DOCKER_AUTH_CONFIG has for the host is used before this file", "\n")
	}
	return path, note, nil
}

// writePrivate replaces a file, or what its link leads to, at once. Nobody but
// the owner may read it.
func writePrivate(path string, b []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config.json.") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
