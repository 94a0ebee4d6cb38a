// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && runtimes

package kubernetes

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const examples = "../../examples/kubernetes/"

func TestPods(t *testing.T) {
	c := startCluster(t)
	t.Run("dry run", c.dryRun)
	t.Run("example pod", c.examplePod)
	t.Run("example job", c.exampleJob)
	t.Run("base images", c.baseImages)
	t.Run("failure", c.failure)
	t.Run("doctor", c.doctor)
	t.Run("defaults", c.defaults)
	t.Run("restricted", c.restricted)
	t.Run("user namespace", c.userNamespace)
}

// dryRun has the API server check every example strictly, and says which Pod
// Security level admits them.
func (c *cluster) dryRun(t *testing.T) {
	c.namespace(t, "baseline", "baseline")
	c.namespace(t, "strict", "restricted")
	for _, namespace := range []string{"baseline", "strict"} { // of pod-ecr.yaml: a dry run makes none
		c.must(t, "", "--namespace="+namespace, "create", "serviceaccount", "builder")
	}
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %d manifests", err, len(files))
	}
	create := func(namespace, file, stdin string) error {
		_, err := c.kubectl(t.Context(), stdin, "--namespace="+namespace, "apply", "--dry-run=server", "--validate=strict", "--filename="+file)
		return err
	}
	for _, f := range append(files, "testdata/base-images.yaml") {
		if err := create("baseline", f, ""); err != nil {
			t.Error(err)
		}
		// A Job is admitted, but not its pods.
		if err := create("strict", f, ""); err == nil != strings.Contains(f, "job-") || err != nil && !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
			t.Errorf("%s: a restricted namespace says: %v", f, err)
		}
	}
	text, err := os.ReadFile(examples + "pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	slip := strings.Replace(string(text), "volumeMounts:", "volumesMounts:", 1)
	if err := create("baseline", "-", slip); err == nil || !strings.Contains(err.Error(), "volumesMounts") {
		t.Errorf("a name that is not known: %v", err)
	}
}

// examplePod: credentials from a secret, the context in a ConfigMap, the digest
// as the termination message.
func (c *cluster) examplePod(t *testing.T) {
	c.namespace(t, "one", "baseline")
	c.must(t, "", "--namespace=one", "apply", "--filename="+examples+"pod.yaml")
	status, log := c.succeeded(t, "one", named("build-app"))
	c.built(t, status, registryName+"/app:1.4", map[string]string{"greeting": "hello\n"})
	if !strings.Contains(log, "inplace sandbox") {
		t.Errorf("not in place:\n%s", log)
	}
}

// built wants the termination message to be the digest of an image, and files
// of it to be as given.
func (c *cluster) built(t *testing.T, status podStatus, image string, want map[string]string) {
	t.Helper()
	if digest := c.digest(t, image); status.message() != digest {
		t.Errorf("the termination message is %q, want %s", status.message(), digest)
	}
	img, err := remote.Image(c.reference(t, image), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	rc := mutate.Extract(img)
	defer rc.Close()
	got := map[string]string{}
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(data)
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: /%s is %q, want %q", image, name, got[name], text)
		}
	}
}

// volume makes a directory of the node a volume, and claims it where a manifest
// does not do so itself.
func (c *cluster) volume(t *testing.T, namespace, claim string, claimIt bool) string {
	t.Helper()
	dir := c.in("volumes", namespace, claim)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.apply(t, "", map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolume", "metadata": map[string]any{"name": namespace + "-" + claim},
		"spec": map[string]any{
			"capacity": map[string]string{"storage": "20Gi"}, "accessModes": []string{"ReadWriteOnce"},
			"claimRef": map[string]string{"namespace": namespace, "name": claim}, "hostPath": map[string]string{"path": dir},
		},
	})
	if claimIt {
		c.apply(t, namespace, map[string]any{
			"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": claim},
			"spec": map[string]any{"accessModes": []string{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]string{"storage": "1Gi"}}},
		})
	}
	return dir
}

func (c *cluster) apply(t *testing.T, namespace string, object map[string]any) {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, string(text), "--namespace="+namespace, "apply", "--filename=-")
}

const appDockerfile = "FROM registry.example.com/busybox AS one\nCOPY a.txt /\nRUN cat a.txt > /b && chmod 4750 /b && ln /b /c\n" +
	"FROM registry.example.com/busybox\nWORKDIR /w\nCOPY --from=one /b /c ./\nRUN ln -s b l && rm /data/old\n"

// exampleJob: sources and cache on volumes. The image is the one that is made
// in namespaces, and the second run takes its steps from the cache.
func (c *cluster) exampleJob(t *testing.T) {
	c.namespace(t, "job", "baseline")
	sources := c.volume(t, "job", "app-sources", true)
	c.volume(t, "job", "build-cache", false)
	write(t, sources, map[string]string{"Dockerfile": appDockerfile, "a.txt": "a\n"})
	for run := range 2 {
		c.must(t, "", "--namespace=job", "apply", "--filename="+examples+"job-cache.yaml")
		_, log := c.succeeded(t, "job", "--selector=job-name=build-app")
		if cached := strings.Contains(log, "CACHED"); cached != (run == 1) {
			t.Errorf("run %d: cached is %t:\n%s", run, cached, log)
		}
		c.must(t, "", "--namespace=job", "delete", "job", "build-app", "--cascade=foreground")
	}
	write(t, sources, map[string]string{"Dockerfile": strings.ReplaceAll(appDockerfile, registryName, c.Registry)})
	want := c.Registry + "/expected:1"
	build := exec.CommandContext(t.Context(), c.HakoBin, "build", "--isolation=namespace", "--work-dir="+t.TempDir(), "--insecure-registry="+c.Registry, "--push", "-t", want, sources)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	diff := exec.CommandContext(t.Context(), c.HakoBin, "diff", "--insecure-registry="+c.Registry, "--ignore=created", "--ignore=mtime", "--ignore=history", "--ignore=layers", "--ignore=digest", want, c.Registry+"/app:job")
	if out, err := diff.CombinedOutput(); err != nil {
		t.Errorf("the pod's image is another: %v\n%s", err, out)
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// baseImages: the warmer fills a volume, a build that may only read it takes
// its base image from there.
func (c *cluster) baseImages(t *testing.T) {
	c.namespace(t, "warm", "baseline")
	c.volume(t, "warm", "base-images", false)
	c.front.fetched("busybox")
	c.must(t, "", "--namespace=warm", "apply", "--filename=testdata/base-images.yaml")
	_, log := c.succeeded(t, "warm", named("warm"))
	if c.front.fetched("busybox") == 0 {
		t.Errorf("the warmer fetched nothing:\n%s", log)
	}
	p := c.pod("cached", "FROM registry.example.com/busybox\nRUN echo made > /made\n", "--cache-dir=/cache")
	p.mount("bases", "/cache", map[string]any{"persistentVolumeClaim": map[string]any{"claimName": "base-images", "readOnly": true}}, true)
	status, log := p.run(t, "warm")
	c.built(t, status, registryName+"/cached:1", map[string]string{"made": "made\n"})
	if n := c.front.fetched("busybox"); n != 0 {
		t.Errorf("%d blobs of the base were fetched though they are on the volume:\n%s", n, log)
	}
}

// A pod builds a Dockerfile that is in a ConfigMap.
type pod struct {
	*cluster
	name, dockerfile string
	container, spec  map[string]any
	mounts, volumes  []map[string]any
}

func (c *cluster) pod(name, dockerfile string, args ...string) *pod {
	p := &pod{cluster: c, name: name, dockerfile: dockerfile, container: map[string]any{}, spec: map[string]any{"restartPolicy": "Never"}}
	p.container["args"] = append([]string{
		"--context=dir:///workspace", "--destination=" + registryName + "/" + name + ":1", "--digest-file=/dev/termination-log", "--progress=plain",
	}, args...)
	p.mount("context", "/workspace", map[string]any{"configMap": map[string]any{"name": name}}, false)
	p.mount("credentials", "/kaniko/.docker", map[string]any{"secret": map[string]any{
		"secretName": "registry-credentials", "items": []map[string]string{{"key": ".dockerconfigjson", "path": "config.json"}},
	}}, false)
	return p
}

func (p *pod) mount(name, path string, source map[string]any, readOnly bool) {
	v := maps.Clone(source)
	v["name"] = name
	p.volumes = append(p.volumes, v)
	p.mounts = append(p.mounts, map[string]any{"name": name, "mountPath": path, "readOnly": readOnly})
}

func (p *pod) with(args ...string) {
	p.container["args"] = append(p.container["args"].([]string), args...)
}

func (p *pod) without(arg string) {
	p.container["args"] = slices.DeleteFunc(p.container["args"].([]string), func(a string) bool { return a == arg })
}

// doctor makes the pod one that says what it may do.
func (p *pod) doctor() *pod {
	p.container["args"] = []string{"doctor"}
	return p
}

func (p *pod) create(t *testing.T, namespace string) {
	t.Helper()
	p.apply(t, namespace, map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": p.name}, "data": map[string]string{"Dockerfile": p.dockerfile, "a.txt": "a\n"},
	})
	c := maps.Clone(p.container)
	c["name"], c["image"], c["volumeMounts"] = "hako", registryName+"/tools/hako:latest", p.mounts
	spec := maps.Clone(p.spec)
	spec["containers"], spec["volumes"] = []any{c}, p.volumes
	p.apply(t, namespace, map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": p.name}, "spec": spec})
}

// run creates the pod, which has to succeed.
func (p *pod) run(t *testing.T, namespace string) (podStatus, string) {
	t.Helper()
	p.create(t, namespace)
	return p.succeeded(t, namespace, named(p.name))
}

// failure: the reason is in the pod's status, unless the digest is to be there,
// which nobody should take it for.
func (c *cluster) failure(t *testing.T) {
	c.namespace(t, "failure", "baseline")
	for name, want := range map[string]string{"fails": `{"step":"Dockerfile:2","kind":"exit","exit":3}` + "\n", "fails-digest": ""} {
		p := c.pod(name, "FROM registry.example.com/busybox\nRUN exit 3\n")
		if want != "" {
			p.without("--digest-file=/dev/termination-log")
		}
		p.create(t, "failure")
		status, log := c.ended(t, "failure", named(name))
		if end := status.ContainerStatuses[0].State.Terminated; status.Phase != "Failed" || end.ExitCode != 3 || end.Message != want {
			t.Errorf("%s: %+v, want the message %q\n%s", name, status, want, log)
		}
	}
}

// runtimeDefault is the seccomp profile that a cluster may give to all pods;
// kubelets do not unless they are told to (seccompDefault).
func runtimeDefault() map[string]any { return map[string]any{"type": "RuntimeDefault"} }

// doctor says what an ordinary pod may do: with the kubelet's own settings, and
// with the runtime's seccomp profile.
func (c *cluster) doctor(t *testing.T) {
	c.namespace(t, "doctor", "baseline")
	_, plain := c.pod("plain", "").doctor().run(t, "doctor")
	guarded := c.pod("guarded", "").doctor()
	guarded.spec["securityContext"] = map[string]any{"seccompProfile": runtimeDefault()}
	_, report := guarded.run(t, "doctor")
	t.Logf("with the kubelet's settings:\n%s\nwith RuntimeDefault:\n%s", plain, report)
	says(t, plain, "guards seccomp off", "rights capabilities a80425fb (the runtime's default 14)", "inplace yes chosen")
	says(t, report,
		"user 0:0, not in a user namespace", "rights capabilities a80425fb (the runtime's default 14)", "guards seccomp filter",
		"may chroot mknod chown setxattr setcap", "may not mount (EPERM) unshare(mount) (EPERM) unshare(user) (EPERM)",
		"root overlay, writable, ", "shows every change (ctime)", "inplace yes chosen")
}

// says wants each line to begin a line of a report; runs of spaces count as one.
func says(t *testing.T, text string, lines ...string) {
	t.Helper()
	var got strings.Builder
	for l := range strings.Lines(text) {
		fmt.Fprintf(&got, "\n%s", strings.Join(strings.Fields(l), " "))
	}
	for _, want := range lines {
		if !strings.Contains(got.String(), "\n"+want) {
			t.Errorf("no line begins %q in\n%s", want, text)
		}
	}
}

// defaults: a pod in whose manifest nothing is said of rights, with the service
// account's token mounted and little memory, in both seccomp settings.
func (c *cluster) defaults(t *testing.T) {
	c.namespace(t, "defaults", "baseline")
	const dockerfile = "FROM registry.example.com/busybox\nRUN dd if=/dev/zero of=/big bs=1M count=300 && cat /big > /dev/null && rm /big\n" +
		"RUN ls -l /var/run/ > /dev/null && echo kept > /run/kept && mknod /null c 1 3\n"
	for name, profile := range map[string]map[string]any{"unconfined": nil, "runtime-default": runtimeDefault()} {
		p := c.pod(name, dockerfile)
		p.container["resources"] = map[string]any{"limits": map[string]string{"memory": "256Mi"}}
		if profile != nil {
			p.spec["securityContext"] = map[string]any{"seccompProfile": profile}
		}
		status, log := p.run(t, "defaults")
		c.built(t, status, registryName+"/"+name+":1", map[string]string{"run/kept": "kept\n"})
		if !strings.Contains(log, "256 MiB memory") {
			t.Errorf("the limit is not known:\n%s", log)
		}
		t.Logf("%s:\n%s", name, log)
	}
}

// restricted: a namespace of the strictest Pod Security level admits builds
// without RUN, with a read-only root too; a RUN is refused with the remedy.
func (c *cluster) restricted(t *testing.T) {
	c.namespace(t, "restricted", "restricted")
	const files = "FROM registry.example.com/busybox\nCOPY a.txt /made\nWORKDIR /w\n"
	for name, dockerfile := range map[string]string{"without-run": files, "read-only-root": files, "with-run": files + "RUN true\n"} {
		p := c.pod(name, dockerfile)
		p.spec["securityContext"] = map[string]any{"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": runtimeDefault()}
		security := map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []string{"ALL"}}}
		p.container["securityContext"] = security
		if name == "read-only-root" {
			security["readOnlyRootFilesystem"] = true
			p.with("--work-dir=/work")
			p.mount("work", "/work", map[string]any{"emptyDir": map[string]any{}}, false)
		}
		p.create(t, "restricted")
		status, log := c.ended(t, "restricted", named(name))
		if name == "with-run" {
			if end := status.ContainerStatuses[0].State.Terminated; status.Phase != "Failed" || !strings.Contains(log, "runAsUser: 0") {
				t.Errorf("%s: %+v\n%s", name, end, log)
			}
			continue
		}
		if status.Phase != "Succeeded" {
			t.Errorf("%s: %+v\n%s", name, status, log)
			continue
		}
		c.built(t, status, registryName+"/"+name+":1", map[string]string{"made": "a\n"})
	}
}

// userNamespace: a pod with hostUsers: false, root in a user namespace. Without
// a filter it makes namespaces within, with one it builds in place, where a
// base's device nodes cannot be made, which is said.
func (c *cluster) userNamespace(t *testing.T) {
	features, err := exec.CommandContext(t.Context(), "runc", "features").Output()
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(features)), ""), `"idmap":{"enabled":true}`) {
		t.Skip("skipped: runc mounts with mapped owners from version 1.2 on")
	}
	c.namespace(t, "users", "baseline")
	for name, profile := range map[string]map[string]any{"users-unconfined": nil, "users": runtimeDefault()} {
		doctor := c.pod(name+"-doctor", "").doctor()
		build := c.pod(name, "FROM registry.example.com/busybox\nRUN id -u > /id && chown 1000:1001 /id && chmod 4755 /id\n")
		for _, p := range []*pod{doctor, build} {
			p.spec["hostUsers"] = false
			if profile != nil {
				p.spec["securityContext"] = map[string]any{"seccompProfile": profile}
			}
		}
		_, report := doctor.run(t, "users")
		says(t, report, "user 0:0, in a user namespace", "rights capabilities a80425fb")
		status, log := build.run(t, "users")
		c.built(t, status, registryName+"/"+name+":1", map[string]string{"id": "0\n"})
		sandbox := map[bool]string{true: "inplace sandbox", false: "namespace sandbox (user namespace"}[profile != nil]
		if !strings.Contains(log, sandbox) {
			t.Errorf("%s: not in the %s:\n%s", name, sandbox, log)
		}
	}
	p := c.pod("devices", "FROM registry.example.com/odd\nRUN true\n")
	p.spec["hostUsers"], p.spec["securityContext"] = false, map[string]any{"seccompProfile": runtimeDefault()}
	p.create(t, "users")
	if status, log := c.ended(t, "users", named("devices")); status.Phase != "Failed" || !strings.Contains(log, "make the device node /odd/dev/null") {
		t.Errorf("a device node in a user namespace: %+v\n%s", status, log)
	}
}
