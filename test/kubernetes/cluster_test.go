// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && runtimes

package kubernetes

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hako/test/rig"
)

const (
	startTimeout = 3 * time.Minute // for each part of the cluster
	podTimeout   = 2 * time.Minute
	token        = "admin-token"
)

// A cluster is one node and what controls it.
type cluster struct {
	*rig.Rig
	front *front
	state string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	r, err := rig.Start(t.Context(), rig.Options{Hako: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	c := &cluster{Rig: r, state: os.Getenv(stateVar)}
	serveNames(t)
	c.front = serveRegistry(t, c.state, r.Registry)
	c.pushImages(t)
	c.writeConfig(t)
	c.startControl(t)
	c.startNode(t)
	return c
}

// pushImages puts hako's own images into the registry, made as make images
// makes them but for the certificate authority, and one for pods' sandboxes.
func (c *cluster) pushImages(t *testing.T) {
	t.Helper()
	out := filepath.Join(c.state, "images")
	cmd := exec.CommandContext(t.Context(), "../../images/build", out)
	cmd.Env = append(os.Environ(), "HAKO="+c.HakoBin, "PLATFORMS=linux/"+runtime.GOARCH, "VERSION=v0.0.0-test",
		"LDFLAGS=-s -w -X main.version=v0.0.0-test", "CERTS="+c.front.certs, "HAKO_WORK_DIR="+t.TempDir())
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build images: %v\n%s", err, text)
	}
	for name, tag := range map[string]string{"executor": "latest", "debug": "debug", "warmer": "warmer"} {
		top, err := layout.ImageIndexFromPath(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := top.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		image, err := top.ImageIndex(m.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(c.reference(t, "tools/hako:"+tag), image, remote.WithContext(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	pause, err := remote.Image(c.reference(t, "busybox"), remote.WithContext(t.Context()))
	if err == nil {
		pause, err = mutate.Config(pause, v1.Config{Entrypoint: []string{"/bin/sleep", "infinity"}})
	}
	if err == nil {
		err = remote.Write(c.reference(t, "pause"), pause, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reference names an image of the registry as this process reaches it, without
// TLS or password.
func (c *cluster) reference(t *testing.T, image string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(c.Registry+"/"+strings.TrimPrefix(image, registryName+"/"), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (c *cluster) in(elem ...string) string {
	return filepath.Join(append([]string{c.state}, elem...)...)
}

func (c *cluster) writeConfig(t *testing.T) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("{STATE}", c.state, "{GROUP}", "/"+filepath.Base(c.state), "{IP}", nodeIP, "{NETWORK}", podNetwork,
		"{REGISTRY}", c.Registry, "{TOKEN}", token, "{NAME}", registryName).Replace
	for path, text := range map[string]string{
		"sa.key":               string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"sa.pub":               string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"tokens.csv":           token + ",admin,admin,system:masters\n",
		"resolv.conf":          "nameserver " + nodeIP + "\n",
		"kubeconfig":           fill(kubeconfig),
		"kubelet.yaml":         fill(kubeletConfig),
		"containerd.toml":      fill(containerdConfig),
		"cni/10-pods.conflist": fill(cniConfig),
		"certs.d/" + registryName + "/hosts.toml": fill("server = \"http://{REGISTRY}\"\n"),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(c.in(path)), 0o755), os.WriteFile(c.in(path), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: "{TOKEN}"}}]
contexts: [{name: c, context: {cluster: c, user: admin}}]
current-context: c
`
	// The thresholds are low: the disk of a development machine may be nearly full.
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: {GROUP}
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: ["{IP}"]
clusterDomain: cluster.local
resolvConf: {STATE}/resolv.conf
volumePluginDir: {STATE}/volume-plugins
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
`
	// Machines of CI may lack CAP_SYS_RESOURCE, which lowering a score takes.
	containerdConfig = `version = 3
root = "{STATE}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{STATE}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{NAME}/pause:latest"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{STATE}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{STATE}/cni"
`
	cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "hako0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "{NETWORK}", "gateway": "{IP}"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
`
)

func (c *cluster) startControl(t *testing.T) {
	t.Helper()
	c.daemon(t, "etcd", "--data-dir="+c.in("etcd"), "--unsafe-no-fsync", "--log-level=warn")
	c.daemon(t, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=127.0.0.1", "--advertise-address="+nodeIP,
		"--kubelet-preferred-address-types=InternalIP", "--cert-dir="+c.in("pki"), "--token-auth-file="+c.in("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.78.0.0/24",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.in("sa.pub"), "--service-account-signing-key-file="+c.in("sa.key"))
	c.until(t, startTimeout, "the API server answers", func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "get", "--raw=/readyz")
		return err
	})
	c.daemon(t, "kube-controller-manager", "--kubeconfig="+c.in("kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1", "--cert-dir="+c.in("pki"),
		"--service-account-private-key-file="+c.in("sa.key"), "--root-ca-file="+c.in("pki", "apiserver.crt"))
	c.daemon(t, "kube-scheduler", "--kubeconfig="+c.in("kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1", "--cert-dir="+c.in("pki"))
}

func (c *cluster) startNode(t *testing.T) {
	t.Helper()
	if _, err := c.Tool(t.Context(), "containerd-shim-runc-v2"); err != nil { // beside containerd, which starts it
		t.Fatal(err)
	}
	c.daemon(t, "containerd", "--config="+c.in("containerd.toml"))
	c.until(t, startTimeout, "containerd listens", func(context.Context) error {
		_, err := os.Stat("/run/containerd/containerd.sock")
		return err
	})
	c.daemon(t, "kubelet", "--root-dir="+c.in("kubelet"), "--config="+c.in("kubelet.yaml"), "--kubeconfig="+c.in("kubeconfig"), "--hostname-override=node", "--node-ip="+nodeIP)
	c.until(t, startTimeout, "the node is ready", func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "wait", "--for=condition=Ready", "node/node", "--timeout=5s")
		return err
	})
}

// daemon starts a part of the cluster, which ends with the test.
func (c *cluster) daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	program, err := c.Tool(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	logFile := c.in(name + ".log")
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(logFile); err == nil && t.Failed() {
			t.Logf("%s said last:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
}

func (c *cluster) until(t *testing.T, limit time.Duration, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("wait until %s: %v", what, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// kubectl runs kubectl and returns what it prints.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	program, err := c.Tool(ctx, "kubectl")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--kubeconfig=" + c.in("kubeconfig"), "--cache-dir=" + c.in("kubectl")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (c *cluster) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// namespace makes one, enforcing a Pod Security level if any is given, with
// the credentials that the examples name.
func (c *cluster) namespace(t *testing.T, name, level string) {
	t.Helper()
	c.must(t, "", "create", "namespace", name)
	if level != "" {
		c.must(t, "", "label", "namespace", name, "pod-security.kubernetes.io/enforce="+level)
	}
	c.until(t, time.Minute, "namespace "+name+" has its service account", func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "--namespace="+name, "get", "serviceaccount", "default")
		return err
	})
	c.must(t, "", "--namespace="+name, "create", "secret", "docker-registry", "registry-credentials",
		"--docker-server="+registryName, "--docker-username="+user, "--docker-password="+password)
}

// A podStatus is how a pod's one container ended.
type podStatus struct {
	Phase             string
	ContainerStatuses []struct {
		State struct {
			Terminated struct {
				ExitCode int
				Reason   string
				Message  string
			}
		}
	}
}

func (s *podStatus) message() string { return s.ContainerStatuses[0].State.Terminated.Message }

// ended waits for the end of the pod that a selector finds, and returns how it
// ended and what it said.
func (c *cluster) ended(t *testing.T, namespace, selector string) (podStatus, string) {
	t.Helper()
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   podStatus
		}
	}
	deadline := time.Now().Add(podTimeout)
	for {
		out := c.must(t, "", "--namespace="+namespace, "get", "pods", "--output=json", selector)
		if err := json.Unmarshal([]byte(out), &pods); err != nil {
			t.Fatal(err)
		}
		if len(pods.Items) == 1 && (pods.Items[0].Status.Phase == "Succeeded" || pods.Items[0].Status.Phase == "Failed") {
			break
		}
		if time.Now().After(deadline) {
			events, _ := c.kubectl(t.Context(), "", "--namespace="+namespace, "get", "events")
			t.Fatalf("%s has not ended:\n%s\n%s", selector, out, events)
		}
		time.Sleep(100 * time.Millisecond)
	}
	pod := pods.Items[0]
	return pod.Status, c.must(t, "", "--namespace="+namespace, "logs", pod.Metadata.Name)
}

// succeeded is ended for a pod that has to succeed.
func (c *cluster) succeeded(t *testing.T, namespace, selector string) (podStatus, string) {
	t.Helper()
	status, log := c.ended(t, namespace, selector)
	if status.Phase != "Succeeded" {
		t.Fatalf("%s: %+v\n%s", selector, status, log)
	}
	return status, log
}

// named selects the pod of a name.
func named(name string) string { return "--field-selector=metadata.name=" + name }

// digest returns what an image's name stands for.
func (c *cluster) digest(t *testing.T, image string) string {
	t.Helper()
	desc, err := remote.Get(c.reference(t, image), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest.String()
}
