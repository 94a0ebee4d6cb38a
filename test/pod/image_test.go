// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hako/test/rig"
)

// maxImage is what an image may have to be downloaded.
const maxImage = 25 << 20

// ownImages are hako's own images, made by hako.
type ownImages struct {
	*world
	dir string // with the layouts and the context
}

func buildImages(t *testing.T) *ownImages {
	t.Helper()
	im := &ownImages{world: start(t, false), dir: t.TempDir()}
	cmd := exec.CommandContext(t.Context(), "../../images/build", im.dir)
	cmd.Env = append(os.Environ(), "HAKO="+im.HakoBin, "PLATFORMS=linux/"+runtime.GOARCH, "VERSION=v0.0.0-test", "LDFLAGS=-s -w -X main.version=v0.0.0-test", "KEEP=1", "HAKO_WORK_DIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return im
}

// index returns the index of a layout and its image.
func (im *ownImages) index(t *testing.T, name string) (*v1.IndexManifest, v1.Image) {
	t.Helper()
	top, err := layout.ImageIndexFromPath(filepath.Join(im.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	x, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = x.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	img, err := x.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return m, img
}

func (im *ownImages) load(t *testing.T, name string) string {
	t.Helper()
	_, img := im.index(t, name)
	ref := "localhost/hako-" + name + ":test"
	if err := im.pod.Load(t.Context(), ref, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

// hako's own images: what they hold, that they make themselves again, that the
// debug image serves as a job's container, and that all of it can be released.
func TestImages(t *testing.T) {
	im := buildImages(t)
	t.Run("content", im.content)
	t.Run("attestations", im.attestations)
	t.Run("itself", im.itself)
	t.Run("job", im.job)
	t.Run("release", im.release)
	t.Run("examples", im.examples)
}

func (im *ownImages) content(t *testing.T) {
	for name, allowed := range map[string][]string{"executor": {"kaniko/"}, "debug": {"kaniko/", "busybox/", "bin/"}} {
		_, img := im.index(t, name)
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		size := m.Config.Size
		for _, l := range m.Layers {
			size += l.Size
		}
		t.Logf("%s: %.1f MB to download", name, float64(size)/1e6)
		if size > maxImage {
			t.Errorf("%s has %d bytes, more than %d", name, size, maxImage)
		}
		var all []string
		for _, l := range entries(t, layoutOf(t, img)) {
			all = append(all, l...)
		}
		for _, p := range all {
			if !slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(p, a) }) {
				t.Errorf("%s has %s", name, p)
			}
		}
		for _, want := range []string{"kaniko/executor", "kaniko/.docker/", "kaniko/docker-credential-gcr", "kaniko/docker-credential-ecr-login", "kaniko/docker-credential-acr-env", "kaniko/ssl/certs/ca-certificates.crt"} {
			if !slices.Contains(all, want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
		cf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		path := map[string]string{"executor": "/usr/local/bin:/kaniko", "debug": "/usr/local/bin:/kaniko:/busybox"}[name]
		want := v1.Config{
			Env:        []string{"PATH=" + path, "HOME=/root", "USER=root", "SSL_CERT_DIR=/kaniko/ssl/certs", "DOCKER_CONFIG=/kaniko/.docker/"},
			WorkingDir: "/workspace", Entrypoint: []string{"/kaniko/executor"},
		}
		if d := cmp.Diff(want, cf.Config); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// layoutOf writes an image as a layout of its own.
func layoutOf(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func (im *ownImages) attestations(t *testing.T) {
	for _, name := range []string{"executor", "debug"} {
		m, _ := im.index(t, name)
		if len(m.Manifests) != 2 {
			t.Fatalf("%s: the index has %d entries, want an image and its attestations", name, len(m.Manifests))
		}
		image, about := m.Manifests[0], m.Manifests[1]
		if about.Annotations["vnd.docker.reference.digest"] != image.Digest.String() || about.Annotations["vnd.docker.reference.type"] != "attestation-manifest" {
			t.Errorf("%s: annotations %v", name, about.Annotations)
		}
		var kinds []string
		var manifest v1.Manifest
		im.blob(t, name, about.Digest, &manifest)
		for _, l := range manifest.Layers {
			var s struct {
				PredicateType string
				Subject       []struct{ Digest map[string]string }
				Predicate     struct {
					Packages          []struct{ Name string }
					DocumentNamespace string
					BuildDefinition   struct {
						BuildType            string
						ResolvedDependencies []struct{ URI string }
					}
					RunDetails struct{ Builder struct{ ID string } }
				}
			}
			im.blob(t, name, l.Digest, &s)
			kinds = append(kinds, s.PredicateType)
			p := &s.Predicate
			for kind, uris := range map[string][]string{
				"https://spdx.dev/Document":      {p.DocumentNamespace, `^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`},
				"https://slsa.dev/provenance/v1": {p.BuildDefinition.BuildType + " " + p.RunDetails.Builder.ID, `^pkg:golang/hako#images/build pkg:golang/hako#Makefile$`},
			} {
				if s.PredicateType == kind && !regexp.MustCompile(uris[1]).MatchString(uris[0]) {
					t.Errorf("%s: %s has %q", name, kind, uris[0])
				}
			}
			for _, d := range p.BuildDefinition.ResolvedDependencies {
				if d.URI != "pkg:golang/hako@v0.0.0-test" {
					t.Errorf("%s: made from %q", name, d.URI)
				}
			}
			if s.Subject[0].Digest["sha256"] != image.Digest.Hex {
				t.Errorf("%s: %s is about %v", name, s.PredicateType, s.Subject)
			}
			var packages []string
			for _, p := range s.Predicate.Packages {
				packages = append(packages, p.Name)
			}
			if s.PredicateType == "https://spdx.dev/Document" && (!slices.Contains(packages, "github.com/moby/buildkit") || slices.Contains(packages, "busybox-static") != (name == "debug")) {
				t.Errorf("%s: packages %v", name, packages)
			}
		}
		if d := cmp.Diff([]string{"https://spdx.dev/Document", "https://slsa.dev/provenance/v1"}, kinds); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func (im *ownImages) blob(t *testing.T, name string, h v1.Hash, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, filepath.Join(im.dir, name, "blobs", h.Algorithm), h.Hex)), v); err != nil {
		t.Fatal(err)
	}
}

// The image builds itself, byte for byte, in place and in namespaces: as it is,
// and by way of a command.
func (im *ownImages) itself(t *testing.T) {
	ref := im.load(t, "executor")
	_, img := im.index(t, "executor")
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	bctx := filepath.Join(im.dir, "context")
	dockerfile, err := os.ReadFile("../../images/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	withRun := im.Address("FROM base.test/busybox AS made\nCOPY $ARCH/base/ /made/\nRUN ln -s executor /made/kaniko/other && chmod -R g+w /made\n" +
		"FROM scratch\nCOPY --from=made /made/ /\nWORKDIR /workspace\nENTRYPOINT [\"/kaniko/executor\"]\n")
	im.write(t, bctx, "Dockerfile", string(dockerfile))
	im.write(t, bctx, "Dockerfile.run", strings.ReplaceAll(withRun, "$ARCH", runtime.GOARCH))
	epoch, err := exec.CommandContext(t.Context(), "git", "log", "-1", "--format=%ct").Output()
	if err != nil {
		t.Fatal(err)
	}
	for file, target := range map[string]string{"Dockerfile": "executor", "Dockerfile.run": ""} {
		flags := []string{
			"--dockerfile=" + file, "--target=" + target, "--no-push", "--ignore-path=/workspace", "--rewrite-timestamp",
			"--source-date-epoch=" + strings.TrimSpace(string(epoch)), "--insecure-registry=" + im.Registry,
		}
		out := t.TempDir()
		res, err := im.pod.Run(t.Context(), rig.PodSpec{
			Image: ref, Args: []string{"--workdir=/workspace"},
			Mounts:  []rig.Mount{{Source: bctx, Target: "/workspace", ReadOnly: true}, {Source: out, Target: "/result"}},
			Command: append([]string{"/kaniko/executor", "--digest-file=/result/digest", "--isolation=inplace"}, flags...),
		})
		if err != nil || res.Exit != 0 {
			t.Fatalf("in place: %v, exit status %d\n%s", err, res.Exit, res.Stderr)
		}
		inPlace := read(t, out, "digest")
		cmd := exec.CommandContext(t.Context(), im.HakoBin, append([]string{
			"executor", "--context=" + bctx, "--digest-file=" + filepath.Join(out, "host"), "--isolation=namespace", "--work-dir=" + t.TempDir(),
		}, flags...)...)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in namespaces: %v\n%s", err, text)
		}
		if got := read(t, out, "host"); got != inPlace {
			t.Errorf("%s: %s in place, %s in namespaces", file, inPlace, got)
		}
		if target != "" && inPlace != want.String() {
			t.Errorf("the image made %s, and is %s itself", inPlace, want)
		}
	}
}

func (im *ownImages) write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A job's container, as GitLab and Jenkins start it: a shell keeps it alive, and
// commands are executed in it, several builds among them.
func (im *ownImages) job(t *testing.T) {
	bctx := im.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nRUN echo of the image > /bin/made && test ! -e /busybox/none\n", "step": "#!/busybox/sh\nls /workspace | sort\n"})
	if err := os.Chmod(filepath.Join(bctx, "step"), 0o755); err != nil {
		t.Fatal(err)
	}
	id, before := im.create(t, rig.PodSpec{
		Image: im.load(t, "debug"), Mounts: []rig.Mount{{Source: bctx, Target: "/workspace"}},
		Command: []string{"sh", "-c", "trap exit TERM; echo up; while sleep 1; do :; done"},
	})
	loop, err := im.pod.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Said(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	step := func(want string, command ...string) {
		t.Helper()
		res, err := im.pod.Exec(t.Context(), id, command...)
		if err != nil || res.Exit != 0 || !strings.Contains(res.Stdout, want) {
			t.Errorf("%q: %v, exit status %d, want %q:\n%s%s", command, err, res.Exit, want, res.Stdout, res.Stderr)
		}
	}
	for range 2 {
		step("busybox", "/bin/sh", "-c", "ls -l /busybox/ls; test ! -e /bin/made")
		step("Dockerfile\nstep\n", "/workspace/step")
		step("", "/kaniko/executor", "--context=/workspace", "--no-push", "--insecure-registry="+im.Registry)
	}
	step("hako v0.0.0-test", "executor", "version")
	step("docker-credential-gcr (hako) v0.0.0-test", "docker-credential-gcr", "version")
	im.asFound(t, id, before)
	if err := im.pod.Kill(t.Context(), id, "TERM"); err != nil {
		t.Fatal(err)
	}
	if _, err := loop.Wait(); err != nil {
		t.Error(err)
	}
}

// make release pushes each image under both kinds of tags.
func (im *ownImages) release(t *testing.T) {
	repository := im.Registry + "/released/hako"
	cmd := exec.CommandContext(t.Context(), "../../images/release", im.dir, "v0.0.0-test", repository)
	cmd.Env = append(os.Environ(), "HAKO="+im.HakoBin, "PUSH=--insecure-registry="+im.Registry)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for tag, of := range map[string]string{"v0.0.0-test": "executor", "latest": "executor", "v0.0.0-test-debug": "debug", "debug": "debug"} {
		ref, err := name.NewTag(repository + ":" + tag)
		if err != nil {
			t.Fatal(err)
		}
		x, err := remote.Index(ref, remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		want, _ := im.index(t, of)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tag, d)
		}
		for _, m := range got.Manifests {
			if _, err := remote.Get(ref.Context().Digest(m.Digest.String()), remote.WithContext(t.Context())); err != nil {
				t.Errorf("%s: %v", tag, err)
			}
		}
	}
}
