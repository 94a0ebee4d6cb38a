// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"hako/internal/keychain"
	"hako/internal/sandbox"
)

// openKeychain opens all sources of credentials for registries. Files are read
// now; what changes while a build runs is read from handles that are opened now.
// The container's own tree is where outside says; nil stands for /.
func openKeychain(opt *Options, n *network, outside *sandbox.Outside) (*keychain.Chain, error) {
	k := newKeychainOpener(opt, n, outside)
	for _, open := range []func() error{k.azureConfig, k.authConfig, k.dockerConfig, k.podman} {
		if err := open(); err != nil {
			return nil, errors.Join(err, k.close())
		}
	}
	k.builtIn()
	return keychain.NewChain(k.sources, k.absent, k.close), nil
}

// A keychainOpener collects sources in the order in which they are asked.
type keychainOpener struct {
	opt     *Options
	network *network
	helpers *helpers
	sources []keychain.Source
	absent  []string
	open    []*tokenFile
	azure   *keychain.AzureConfig      // of --azure-container-registry-config
	made    map[string]keychain.Source // built-in ones
}

func newKeychainOpener(opt *Options, n *network, outside *sandbox.Outside) *keychainOpener {
	return &keychainOpener{opt: opt, network: n, helpers: newHelpers(opt.Env, outside), made: make(map[string]keychain.Source)}
}

func (k *keychainOpener) close() error {
	errs := []error{k.helpers.close()}
	for _, f := range k.open {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// openToken implements keychain.Cloud's Open.
func (k *keychainOpener) openToken(path string) (func() ([]byte, error), error) {
	f, err := openTokenFile(path)
	if err != nil {
		return nil, err
	}
	k.open = append(k.open, f)
	return f.read, nil
}

func (k *keychainOpener) add(b []byte, source string) error {
	d, err := keychain.ParseDockerConfig(b, source)
	if err != nil {
		return err
	}
	stand := make(map[string]keychain.Source)
	for _, name := range d.Helpers() {
		if err := k.helpers.open(name); err != nil {
			return err
		}
		if own := keychain.HelperNames()[name]; own != "" {
			stand[name] = k.source(own)
		}
	}
	d.Helper, d.BuiltIn = k.helpers.run, func(name string) keychain.Source { return stand[name] }
	k.sources = append(k.sources, d)
	return nil
}

// azureConfig reads the file that names the identity for Azure's registries.
func (k *keychainOpener) azureConfig() error {
	path := k.opt.Registry.AzureConfig
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if isAbsent(err) {
		return &keychain.ConfigError{
			Err:    fmt.Errorf("read --azure-container-registry-config=%s: there is no such file", path),
			Remedy: "mount it there; or leave the flag out and set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
		}
	}
	if err != nil {
		return unreadable(err)
	}
	k.azure, err = keychain.ParseAzureConfig(path, b)
	return err
}

// authConfig takes the config that GitLab's runners hand to jobs. Docker too
// prefers it to the file.
func (k *keychainOpener) authConfig() error {
	const name = "DOCKER_AUTH_CONFIG"
	if v := k.opt.Env.Get(name); v != "" {
		return k.add([]byte(v), name)
	}
	k.absent = append(k.absent, name+" (unset)")
	return nil
}

// dockerConfig reads docker's config.json. A secret of Kubernetes may have been
// mounted with the name of its key, or on the very path of the file, which then is
// a directory.
func (k *keychainOpener) dockerConfig() error {
	env := k.opt.Env
	path := dockerConfigPath(env)
	if path == "" {
		k.absent = append(k.absent, "config.json (neither DOCKER_CONFIG nor HOME is set)")
		return nil
	}
	dir := filepath.Dir(path)
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		return &keychain.ConfigError{
			Err:    fmt.Errorf("read credentials: DOCKER_CONFIG=%s is a file", env.Get("DOCKER_CONFIG")),
			Remedy: "DOCKER_CONFIG names the directory that config.json is in",
		}
	}
	const secretKey = ".dockerconfigjson"
	for _, p := range []string{path, filepath.Join(path, secretKey), filepath.Join(path, "config.json"), filepath.Join(dir, secretKey)} {
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			continue
		}
		b, err := os.ReadFile(p)
		if err == nil {
			return k.add(b, p)
		}
		if isAbsent(err) || errors.Is(err, fs.ErrPermission) && env.Get("DOCKER_CONFIG") == "" {
			continue
		}
		return unreadable(err)
	}
	k.absent = append(k.absent, path+" (not there)")
	return nil
}

// dockerConfigPath returns where docker's config.json belongs, "" for nowhere.
func dockerConfigPath(env Env) string {
	dir := env.Get("DOCKER_CONFIG")
	if dir == "" {
		if env.Get("HOME") == "" {
			return ""
		}
		dir = filepath.Join(env.Get("HOME"), ".docker")
	}
	return filepath.Join(dir, "config.json")
}

// podman reads the file of podman, buildah and skopeo: the one that is named, or
// the first of its usual places that is there.
func (k *keychainOpener) podman() error {
	env := k.opt.Env
	if p := env.Get("REGISTRY_AUTH_FILE"); p != "" {
		b, err := os.ReadFile(p)
		if isAbsent(err) {
			return &keychain.ConfigError{
				Err:    fmt.Errorf("read credentials: REGISTRY_AUTH_FILE=%s: there is no such file", p),
				Remedy: "unset the variable, or write the file with podman login or hako login",
			}
		}
		if err != nil {
			return unreadable(err)
		}
		return k.add(b, p)
	}
	var places []string
	if d := env.Get("XDG_RUNTIME_DIR"); d != "" {
		places = append(places, filepath.Join(d, "containers", "auth.json"))
	}
	if d := env.Get("XDG_CONFIG_HOME"); d != "" {
		places = append(places, filepath.Join(d, "containers", "auth.json"))
	}
	if d := env.Get("HOME"); d != "" {
		places = append(places, filepath.Join(d, ".config", "containers", "auth.json"))
	}
	for _, p := range places {
		b, err := os.ReadFile(p)
		if err == nil {
			return k.add(b, p)
		}
	}
	k.absent = append(k.absent, "podman's auth.json (not there)")
	return nil
}

func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func unreadable(err error) error {
	return &keychain.ConfigError{
		Err:    fmt.Errorf("read credentials: %w", err),
		Remedy: fmt.Sprintf("make it readable for user %d, as whom hako runs; in a pod, fsGroup or defaultMode does that", os.Getuid()),
	}
}

// builtIn adds the sources that need no file of docker's.
func (k *keychainOpener) builtIn() {
	for _, name := range keychain.BuiltIn() {
		if asked := k.opt.Registry.CredentialHelpers; asked != nil && !slices.Contains(asked, name) {
			k.absent = append(k.absent, name+" (not in --credential-helpers)")
			continue
		}
		k.sources = append(k.sources, k.source(name))
	}
}

// source returns the built-in source of a name, made once: it remembers what it
// was given. nil is for names that there are not.
func (k *keychainOpener) source(name string) keychain.Source {
	if s := k.made[name]; s != nil {
		return s
	}
	env := keychain.Getenv(k.opt.Env.Get)
	cloud := keychain.Cloud{
		Env: env, Client: tokenClient(k.network.client(), k.network.proxy), Machine: tokenClient(k.network.client(), nil), Open: k.openToken, Now: time.Now,
	}
	var s keychain.Source
	switch name {
	case "env":
		s = keychain.NewEnv(env)
	case "google":
		s = keychain.NewGoogle(cloud)
	case "ecr":
		s = keychain.NewECR(cloud)
	case "acr":
		s = keychain.NewACR(cloud, k.azure)
	case "gitlab":
		s = keychain.NewGitLab(env)
	case "github":
		s = keychain.NewGitHub(env)
	default:
		return nil
	}
	k.made[name] = s
	return s
}

// tokenClient returns the client for services that give credentials. They
// redirect nowhere, and what is sent to them is to reach nobody else.
func tokenClient(c *http.Client, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	if t, ok := c.Transport.(*http.Transport); ok {
		t.Proxy = proxy
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}
