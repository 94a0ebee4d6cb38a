// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// seccompDefault is moby's default profile, the one that Docker and containerd
// apply to an ordinary pod; podman's own is looser.
//
//go:embed seccomp-default.json
var seccompDefault []byte

// PodCapabilities is CapEff of an ordinary pod: the 14 default capabilities of
// Docker and containerd.
const PodCapabilities = "00000000a80425fb"

const containersConf = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
`

// A Podman runs containers out of a storage of its own. It is safe for
// concurrent use.
type Podman struct {
	rig     *Rig
	dir     string
	seccomp string

	mu     sync.Mutex
	images map[string]string // names within the image → image
}

// A Mount is a bind mount into a container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// A PodSpec is a container to run with an ordinary pod's rights.
type PodSpec struct {
	Image   string
	Command []string
	Mounts  []Mount
	Memory  string // such as 256m; empty is no limit
	Env     []string
	Args    []string // more arguments of podman create
	Runtime string   // path of another OCI runtime than runc
	Network string   // another network than the host's
}

// A PodResult is what a container's process left.
type PodResult struct {
	Stdout, Stderr string
	Exit           int
}

// Podman sets up the rig's container storage, once.
func (r *Rig) Podman(ctx context.Context) (*Podman, error) {
	r.podmanOnce.Do(func() { r.podman, r.podmanErr = newPodman(r, filepath.Join(r.Dir, "pod")) })
	return r.podman, r.podmanErr
}

func newPodman(r *Rig, dir string) (*Podman, error) {
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return nil, fmt.Errorf("make podman storage: %w", err)
	}
	p := &Podman{rig: r, dir: dir, seccomp: filepath.Join(dir, "seccomp.json"), images: map[string]string{}}
	for name, data := range map[string][]byte{
		"containers.conf": []byte(containersConf), "registries.conf": nil,
		"storage.conf": fmt.Appendf(nil, "[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "root"), filepath.Join(dir, "run")),
		"seccomp.json": seccompDefault, "policy.json": []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return nil, fmt.Errorf("write podman config: %w", err)
		}
	}
	return p, nil
}

// close removes what containers are left and unmounts the storage.
func (p *Podman) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := p.do(ctx, "rm", "--all", "--force", "--time=0")
	return errors.Join(err, unmountBelow(p.dir))
}

// cmd is podman with the rig's storage and configuration and nothing of the
// machine's.
func (p *Podman) cmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "podman", append(p.global(), args...)...)
	cmd.Dir = p.dir // conmon writes a file there when memory runs out
	cmd.Env = append(os.Environ(), p.env()...)
	return cmd
}

// Builder is a build of the Dockerfile in dir, and a push of the image as ref, by
// the podman or buildah at path, with the rig's storage; args are those of its
// build command.
func (p *Podman) Builder(ctx context.Context, path string, args []string, ref, dir string) *exec.Cmd {
	global := []string{"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--storage-driver", "overlay", "--log-level", "error"}
	build := slices.Concat([]string{path}, global, args, []string{
		"--quiet", "--tls-verify=false", "--signature-policy", filepath.Join(p.dir, "policy.json"), "--runtime", "runc", "--tag", ref, dir,
	})
	push := slices.Concat([]string{path}, global, []string{
		"push", "--quiet", "--tls-verify=false", "--signature-policy", filepath.Join(p.dir, "policy.json"), ref,
	})
	script := `build=$1; shift; "${@:1:build}" && shift "$build" && exec "$@"`
	cmd := exec.CommandContext(ctx, "bash", slices.Concat([]string{"-c", script, "bash", strconv.Itoa(len(build))}, build, push)...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), p.env()...)
	return cmd
}

func (p *Podman) global() []string {
	return []string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"),
		"--tmpdir", filepath.Join(p.dir, "tmp"), "--storage-driver", "overlay", "--log-level", "error",
	}
}

func (p *Podman) env() []string {
	return []string{
		"CONTAINERS_CONF=" + filepath.Join(p.dir, "containers.conf"),
		"CONTAINERS_STORAGE_CONF=" + filepath.Join(p.dir, "storage.conf"),
		"CONTAINERS_REGISTRIES_CONF=" + filepath.Join(p.dir, "registries.conf"),
	}
}

// rights are arguments that give a container an ordinary pod's rights.
func (p *Podman) rights() []string {
	return []string{"--network=host", "--cap-add=MKNOD,NET_RAW,AUDIT_WRITE", "--security-opt=seccomp=" + p.seccomp, "--pull=never", "--log-driver=none"}
}

func (p *Podman) do(ctx context.Context, args ...string) (string, error) {
	cmd := p.cmd(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Load puts an image into the storage under the given name.
func (p *Podman) Load(ctx context.Context, ref string, img v1.Image) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	path := filepath.Join(p.dir, "load-"+filepath.Base(tag.RepositoryStr())+".tar")
	defer func() { _ = os.Remove(path) }()
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		return fmt.Errorf("write image %s: %w", ref, err)
	}
	_, err = p.do(ctx, "load", "--quiet", "--input", path, "--signature-policy", filepath.Join(p.dir, "policy.json"))
	return err
}

// Scratch returns an image FROM scratch that holds hako under the given names
// and nothing else: /kaniko is open to all and its only directory.
func (p *Podman) Scratch(ctx context.Context, names ...string) (string, error) {
	return p.image(ctx, "localhost/scratch", nil, names)
}

// image adds hako, under names, to the layers of a base.
func (p *Podman) image(ctx context.Context, repo string, base v1.Image, names []string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := repo + " " + strings.Join(names, " ")
	if ref, ok := p.images[key]; ok {
		return ref, nil
	}
	ref := fmt.Sprintf("%s:%d", repo, len(p.images))
	img, err := p.rig.hakoImage(base, names)
	if err != nil {
		return "", err
	}
	if err := p.Load(ctx, ref, img); err != nil {
		return "", err
	}
	p.images[key] = ref
	return ref, nil
}

// Create makes a container, not yet started, and returns its id.
func (p *Podman) Create(ctx context.Context, s PodSpec) (string, error) {
	args := append([]string{"create"}, p.rights()...)
	if s.Network != "" {
		args[slices.Index(args, "--network=host")] = "--network=" + s.Network
	}
	if s.Runtime != "" {
		args = append([]string{"--runtime=" + s.Runtime}, args...)
	}
	if s.Memory != "" {
		args = append(args, "--memory="+s.Memory, "--memory-swap="+s.Memory)
	}
	for _, e := range s.Env {
		args = append(args, "--env="+e)
	}
	for _, m := range s.Mounts {
		v := "type=bind,source=" + m.Source + ",target=" + m.Target
		if m.ReadOnly {
			v += ",readonly"
		}
		args = append(args, "--mount="+v)
	}
	args = append(args, s.Args...)
	if len(s.Command) > 0 {
		args = append(args, "--entrypoint="+s.Command[0], s.Image)
		args = append(args, s.Command[1:]...)
	} else {
		args = append(args, s.Image)
	}
	return p.do(ctx, args...)
}

// Init makes the container's mount points, without starting its process, so
// that its files can be looked at as the process will find them.
func (p *Podman) Init(ctx context.Context, id string) error {
	_, err := p.do(ctx, "init", id)
	return err
}

// Start runs a container, again if it has run before, to its end.
func (p *Podman) Start(ctx context.Context, id string) (PodResult, error) {
	r, err := p.Attach(ctx, id)
	if err != nil {
		return PodResult{}, err
	}
	return r.Wait()
}

// Kill sends a signal to a container's first process.
func (p *Podman) Kill(ctx context.Context, id, signal string) error {
	_, err := p.do(ctx, "kill", "--signal="+signal, id)
	return err
}

// Remove removes a container.
func (p *Podman) Remove(ctx context.Context, id string) error {
	_, err := p.do(ctx, "rm", "--force", "--time=0", id)
	return err
}

// Run runs a container to its end and removes it.
func (p *Podman) Run(ctx context.Context, s PodSpec) (PodResult, error) {
	id, err := p.Create(ctx, s)
	if err != nil {
		return PodResult{}, err
	}
	res, err := p.Start(ctx, id)
	return res, errors.Join(err, p.Remove(context.WithoutCancel(ctx), id))
}

// Files lists a container's files, as Snapshot does, from outside it.
func (p *Podman) Files(ctx context.Context, id string) ([]string, error) {
	root, err := p.do(ctx, "mount", id)
	if err != nil {
		return nil, err
	}
	files, err := Snapshot(root)
	_, unmountErr := p.do(context.WithoutCancel(ctx), "unmount", id)
	return files, errors.Join(err, unmountErr)
}
