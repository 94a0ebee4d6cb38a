// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.yaml.in/yaml/v3"

	"hako/test/rig"
)

const exampleRegistry = "registry.example.com"

// The parts of manifests that the examples use. A name that is not here is an
// error, so slips are found.
type (
	manifest struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   map[string]any
		Data       map[string]string
		Spec       yaml.Node
	}
	podSpec struct {
		RestartPolicy                string `yaml:"restartPolicy"`
		ServiceAccountName           string `yaml:"serviceAccountName"`
		AutomountServiceAccountToken *bool  `yaml:"automountServiceAccountToken"`
		Containers                   []container
		Volumes                      []volume
	}
	container struct {
		Name, Image, WorkingDir string
		Command, Args           []string
		Env                     []struct{ Name, Value string }
		Resources               resources
		VolumeMounts            []volumeMount `yaml:"volumeMounts"`
	}
	resources   struct{ Requests, Limits map[string]string }
	volumeMount struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	volume struct {
		Name      string
		ConfigMap *struct{ Name string } `yaml:"configMap"`
		Secret    *struct {
			SecretName string `yaml:"secretName"`
			Items      []struct{ Key, Path string }
		}
		PersistentVolumeClaim *struct {
			ClaimName string `yaml:"claimName"`
			ReadOnly  bool   `yaml:"readOnly"`
		} `yaml:"persistentVolumeClaim"`
	}
	jobSpec struct {
		BackoffLimit            int `yaml:"backoffLimit"`
		TTLSecondsAfterFinished int `yaml:"ttlSecondsAfterFinished"`
		Template                struct{ Spec podSpec }
	}
)

// examples runs what of examples/ needs nothing but a registry, and reads the rest.
func (im *ownImages) examples(t *testing.T) {
	executor, debug := im.load(t, "executor"), im.load(t, "debug")
	e := &exampleRun{ownImages: im, refs: map[string]string{"latest": executor, "debug": debug}}
	t.Run("kubernetes", e.kubernetes)
	t.Run("gitlab", e.gitlab)
	t.Run("tekton", e.tekton)
	t.Run("cloudbuild", e.cloudBuild)
	t.Run("argo", e.argo)
	t.Run("docker", e.docker)
}

type exampleRun struct {
	*ownImages
	refs map[string]string // hako's images by tag
}

func parse(t *testing.T, data []byte, into any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

// part reads a part of a manifest, strictly.
func part(t *testing.T, n *yaml.Node, into any) {
	t.Helper()
	data, err := yaml.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, into)
}

// run starts a container of an example and wants it to succeed.
func (e *exampleRun) run(t *testing.T, image string, s rig.PodSpec) rig.PodResult {
	t.Helper()
	ref, ok := e.refs[image[strings.LastIndexByte(image, ':')+1:]]
	if !ok || !strings.HasPrefix(image, exampleRegistry+"/tools/hako:") {
		t.Fatalf("image %s is none of hako's", image)
	}
	s.Image = ref
	s.Env = append(s.Env, "HAKO_INSECURE_REGISTRY="+e.Registry)
	for _, list := range [][]string{s.Command, s.Env} {
		for i := range list {
			list[i] = strings.ReplaceAll(list[i], exampleRegistry, e.Registry)
		}
	}
	res, err := e.pod.Run(t.Context(), s)
	if err != nil || res.Exit != 0 {
		t.Fatalf("%v, exit status %d\n%s%s", err, res.Exit, res.Stdout, res.Stderr)
	}
	return res
}

// pushed returns the digest under a name that an example pushed to.
func (e *exampleRun) pushed(t *testing.T, image string) string {
	t.Helper()
	ref, err := name.NewTag(strings.ReplaceAll(image, exampleRegistry, e.Registry))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest.String()
}

// app is a context to build.
func (e *exampleRun) app(t *testing.T) string {
	t.Helper()
	return e.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nARG VERSION\nCOPY a.txt /\nRUN echo \"$VERSION\" > /version\n", "a.txt": "a\n"})
}

func (e *exampleRun) kubernetes(t *testing.T) {
	files, err := filepath.Glob("../../examples/kubernetes/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %d manifests", err, len(files))
	}
	for _, path := range files {
		file := filepath.Base(path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		configMaps := map[string]map[string]string{}
		for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
			d.KnownFields(true)
			var m manifest
			if err := d.Decode(&m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch m.APIVersion + " " + m.Kind {
			case "v1 ConfigMap":
				configMaps[m.Metadata["name"].(string)] = m.Data
			case "v1 Pod":
				var p podSpec
				part(t, &m.Spec, &p)
				e.podOf(t, file, &p, configMaps)
			case "batch/v1 Job":
				var j jobSpec
				part(t, &m.Spec, &j)
				first := e.podOf(t, file, &j.Template.Spec, configMaps)
				if again := e.podOf(t, file, &j.Template.Spec, configMaps); !strings.Contains(again.Stderr, "CACHED") {
					t.Errorf("%s: nothing was cached in the second run:\n%s\nfirst:\n%s", file, again.Stderr, first.Stderr)
				}
			case "v1 PersistentVolumeClaim", "v1 ServiceAccount":
			default:
				t.Errorf("%s: %s %s is not known here", file, m.APIVersion, m.Kind)
			}
		}
	}
}

// podOf runs a Pod, unless it needs a cloud.
func (e *exampleRun) podOf(t *testing.T, file string, p *podSpec, configMaps map[string]map[string]string) (res rig.PodResult) {
	t.Helper()
	c := p.Containers[0]
	switch {
	case p.RestartPolicy != "Never" || p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken:
		t.Errorf("%s: a pod that builds is not restarted and has no token", file)
	case c.Resources.Limits["memory"] == "" || c.Resources.Requests["memory"] == "":
		t.Errorf("%s: there is no limit or request of memory", file)
	}
	destination := ""
	for _, a := range c.Args {
		if d, ok := strings.CutPrefix(a, "--destination="); ok {
			destination = d
		}
		e.flag(t, file, a)
	}
	if !strings.HasPrefix(destination, exampleRegistry) {
		return res
	}
	log := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	s := rig.PodSpec{Command: append([]string{"/kaniko/executor"}, c.Args...), Mounts: []rig.Mount{{Source: log, Target: "/dev/termination-log"}}}
	for _, v := range c.Env {
		s.Env = append(s.Env, v.Name+"="+v.Value)
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(p.Volumes, func(v volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("%s: there is no volume %s", file, m.Name)
		}
		v := p.Volumes[i]
		s.Mounts = append(s.Mounts, rig.Mount{
			Source: e.volume(t, file, &v, configMaps), Target: m.MountPath,
			ReadOnly: m.ReadOnly || v.Secret != nil || v.ConfigMap != nil,
		})
	}
	res = e.run(t, c.Image, s)
	digest := e.pushed(t, destination)
	if !strings.Contains(res.Stdout, digest) {
		t.Errorf("%s: standard output %q, want %s", file, res.Stdout, digest)
	}
	if message := read(t, filepath.Dir(log), "termination-log"); slices.Contains(c.Args, "--digest-file=/dev/termination-log") && message != digest {
		t.Errorf("%s: the termination message is %q, want %s", file, message, digest)
	}
	return res
}

// volume returns a directory that stands for a volume; a claim has one for all
// pods of the test.
func (e *exampleRun) volume(t *testing.T, file string, v *volume, configMaps map[string]map[string]string) string {
	t.Helper()
	switch {
	case v.ConfigMap != nil:
		data, ok := configMaps[v.ConfigMap.Name]
		if !ok {
			t.Fatalf("%s: there is no ConfigMap %s", file, v.ConfigMap.Name)
		}
		// As the kubelet makes it: links to links.
		dir := t.TempDir()
		data = maps.Clone(data)
		for k := range data {
			data[k] = strings.ReplaceAll(data[k], exampleRegistry, e.Registry)
		}
		for k, text := range data {
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "..1"), 0o755), os.WriteFile(filepath.Join(dir, "..1", k), []byte(text), 0o644), os.Symlink(filepath.Join("..data", k), filepath.Join(dir, k))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("..1", filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		return dir
	case v.Secret != nil:
		return e.files(t, map[string]string{v.Secret.Items[0].Path: `{"auths":{}}`})
	case v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == "app-sources":
		return e.app(t)
	case v.PersistentVolumeClaim != nil:
		dir := filepath.Join(e.dir, "claims", v.PersistentVolumeClaim.ClaimName)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Fatalf("%s: volume %s has no source", file, v.Name)
	return ""
}

// flag wants the argument to be one that the executor knows.
func (e *exampleRun) flag(t *testing.T, file, arg string) {
	t.Helper()
	flag, _, _ := strings.Cut(arg, "=")
	if out, err := exec.CommandContext(t.Context(), e.HakoBin, "executor", "--help").CombinedOutput(); err != nil || !bytes.Contains(out, []byte(" "+flag+" ")) {
		t.Errorf("%s: the executor has no %s", file, flag)
	}
}

func (e *exampleRun) gitlab(t *testing.T) {
	var ci map[string]struct {
		Image struct {
			Name       string
			Entrypoint []string
		}
		Script    []string
		Artifacts struct {
			Reports struct{ Dotenv string }
		}
	}
	data, err := os.ReadFile("../../examples/gitlab-ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, &ci)
	job := ci["build"]
	// The runner pipes the script into a shell.
	script := "set -e\n" + strings.Join(job.Script, "\n") + "\n"
	dir := e.app(t)
	e.run(t, job.Image.Name, rig.PodSpec{
		Command: []string{"sh", "-c", script}, Mounts: []rig.Mount{{Source: dir, Target: "/builds/app"}}, Args: []string{"--workdir=/builds/app"},
		Env: []string{"CI_PROJECT_DIR=/builds/app", "CI_REGISTRY_IMAGE=" + exampleRegistry + "/group/app", "CI_COMMIT_SHORT_SHA=abc1234", "CI_COMMIT_TAG=v1"},
	})
	want := "IMAGE=" + e.Registry + "/group/app@" + e.pushed(t, exampleRegistry+"/group/app:abc1234") + "\n"
	if got := read(t, dir, job.Artifacts.Reports.Dotenv); got != want {
		t.Errorf("the report is %q, want %q", got, want)
	}
}

func (e *exampleRun) tekton(t *testing.T) {
	var task struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   map[string]string
		Spec       struct {
			Description string
			Params      []struct {
				Name, Description, Type string
				Default                 any
			}
			Workspaces []struct {
				Name, Description string
				Optional          bool
				MountPath         string `yaml:"mountPath"`
			}
			Results []struct{ Name, Description string }
			Steps   []struct {
				Name, Image      string
				WorkingDir       string `yaml:"workingDir"`
				Args             []string
				Script           string
				Env              []struct{ Name, Value string }
				ComputeResources resources `yaml:"computeResources"`
			}
		}
	}
	data, err := os.ReadFile("../../examples/tekton-task.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, &task)
	image := exampleRegistry + "/tekton:1"
	values := []string{"$(params.IMAGE)", image, "$(workspaces.source.path)", "/workspace/source"}
	for _, p := range task.Spec.Params {
		if s, ok := p.Default.(string); ok {
			values = append(values, "$(params."+p.Name+")", s)
		}
	}
	for _, r := range task.Spec.Results {
		values = append(values, "$(results."+r.Name+".path)", "/tekton/results/"+r.Name)
	}
	fill := strings.NewReplacer(values...).Replace
	source, results, scripts := e.app(t), t.TempDir(), t.TempDir()
	for _, step := range task.Spec.Steps {
		s := rig.PodSpec{
			Mounts: []rig.Mount{{Source: source, Target: "/workspace/source"}, {Source: results, Target: "/tekton/results"}, {Source: scripts, Target: "/tekton/scripts"}},
			Args:   []string{"--workdir=/workspace"},
		}
		for _, v := range step.Env {
			s.Env = append(s.Env, v.Name+"="+fill(v.Value))
		}
		switch {
		case step.Script != "":
			if err := os.WriteFile(filepath.Join(scripts, step.Name), []byte(step.Script), 0o755); err != nil {
				t.Fatal(err)
			}
			s.Command = []string{"/tekton/scripts/" + step.Name}
		default:
			s.Command = []string{"/kaniko/executor"}
			for _, a := range step.Args {
				if a != "$(params.EXTRA_ARGS[*])" {
					s.Command = append(s.Command, fill(a))
				}
			}
		}
		e.run(t, fill(step.Image), s)
	}
	if got := read(t, results, "IMAGE_DIGEST"); got != e.pushed(t, image) {
		t.Errorf("IMAGE_DIGEST is %q", got)
	}
	if got, want := read(t, results, "IMAGE_URL"), strings.ReplaceAll(image, exampleRegistry, e.Registry); got != want {
		t.Errorf("IMAGE_URL is %q, want %q", got, want)
	}
}

func (e *exampleRun) cloudBuild(t *testing.T) {
	var build struct {
		Steps []struct {
			Name string
			Args []string
		}
		Timeout string
	}
	data, err := os.ReadFile("../../examples/cloudbuild.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, &build)
	step, outputs := build.Steps[0], t.TempDir()
	fill := strings.NewReplacer("$PROJECT_ID", "project", "$SHORT_SHA", "abc1234", "$TAG_NAME", "v1").Replace
	s := rig.PodSpec{
		Command: []string{"/kaniko/executor"}, Mounts: []rig.Mount{{Source: e.app(t), Target: "/workspace"}, {Source: outputs, Target: "/builder/outputs"}},
		Env: []string{"BUILDER_OUTPUT=/builder/outputs"},
	}
	for _, a := range step.Args {
		s.Command = append(s.Command, fill(a))
	}
	e.run(t, step.Name, s)
	image := exampleRegistry + "/project/app:abc1234"
	want := `{"name":"` + strings.ReplaceAll(image, exampleRegistry, e.Registry) + `","digest":"` + e.pushed(t, image) + "\"}\n"
	if got := read(t, outputs, "images"); got != want {
		t.Errorf("images is %q, want %q", got, want)
	}
}

func (e *exampleRun) argo(t *testing.T) {
	var wf struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   map[string]string
		Spec       struct {
			Templates []struct {
				Name   string
				Inputs struct {
					Parameters []struct{ Name, Description, Value string }
				}
				Container container
				Outputs   struct {
					Parameters []struct {
						Name      string
						ValueFrom struct{ Path string } `yaml:"valueFrom"`
					}
				}
				Volumes []volume
			}
		}
	}
	data, err := os.ReadFile("../../examples/argo-template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse(t, data, &wf)
	tpl := wf.Spec.Templates[0]
	fill := strings.NewReplacer("{{inputs.parameters.context}}", tpl.Inputs.Parameters[0].Value, "{{inputs.parameters.image}}", exampleRegistry+"/argo:1").Replace
	out := filepath.Join(t.TempDir(), "digest")
	if err := os.WriteFile(out, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	s := rig.PodSpec{Command: []string{"/kaniko/executor"}, Mounts: []rig.Mount{
		{Source: e.app(t), Target: "/work"}, {Source: out, Target: tpl.Outputs.Parameters[0].ValueFrom.Path},
		{Source: e.volume(t, "argo", &tpl.Volumes[0], nil), Target: tpl.Container.VolumeMounts[1].MountPath, ReadOnly: true},
	}}
	for _, a := range tpl.Container.Args {
		s.Command = append(s.Command, fill(a))
	}
	e.run(t, tpl.Container.Image, s)
	if got := read(t, filepath.Dir(out), "digest"); got != e.pushed(t, exampleRegistry+"/argo:1") {
		t.Errorf("the output is %q", got)
	}
}

// docker runs the script with a docker that writes down how it is called.
func (e *exampleRun) docker(t *testing.T) {
	bin, home := t.TempDir(), e.files(t, map[string]string{".docker/config.json": `{"auths":{}}`})
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\nprintf '%s\\n' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := e.app(t)
	cmd := exec.CommandContext(t.Context(), "../../examples/run_in_docker.sh", "Dockerfile", dir, exampleRegistry+"/docker:1", "--build-arg=VERSION=a b")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+home, "DOCKER_CONFIG=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	args := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(args) < 7 || !slices.Equal(args[:2], []string{"run", "--rm"}) {
		t.Fatalf("docker %q", args)
	}
	s := rig.PodSpec{Command: []string{"/kaniko/executor"}}
	for args = args[2:]; args[0] == "-v"; args = args[2:] {
		v := strings.Split(args[1], ":")
		s.Mounts = append(s.Mounts, rig.Mount{Source: v[0], Target: v[1], ReadOnly: len(v) > 2 && v[2] == "ro"})
	}
	if len(s.Mounts) != 2 {
		t.Errorf("mounts %v, want the context and config.json", s.Mounts)
	}
	s.Command = append(s.Command, args[1:]...)
	e.run(t, args[0], s)
	e.pushed(t, exampleRegistry+"/docker:1")
}
