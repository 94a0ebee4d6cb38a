// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Sandbox is where, and with which rights, hako runs a case's commands.
type Sandbox string

// The sandboxes.
const (
	InPlace   Sandbox = "inplace"   // in a container, with an ordinary pod's rights
	Namespace Sandbox = "namespace" // on this machine, as root
	Rootless  Sandbox = "rootless"  // on this machine, as a user with subordinate ids
	SingleID  Sandbox = "single"    // on this machine, as a user without any
	Plain     Sandbox = "plain"     // as Namespace, where overlayfs is refused
)

// Sandboxes lists them all.
func Sandboxes() []Sandbox { return []Sandbox{InPlace, Namespace, Plain, Rootless, SingleID} }

// About says in a few words what a sandbox is.
func (s Sandbox) About() string {
	return map[Sandbox]string{
		InPlace: "in place, in an ordinary pod", Namespace: "namespaces, as root",
		Plain:    "namespaces, as root, without overlayfs",
		Rootless: "namespaces, as a user with subordinate ids", SingleID: "namespaces, as a user with one id",
	}[s]
}

// Needs are what the machine has to have for a sandbox.
func (s Sandbox) Needs() []Need {
	switch s {
	case InPlace:
		return []Need{NeedPodman}
	case Rootless:
		return []Need{NeedUidmap}
	}
	return nil
}

func (s Sandbox) isUser() bool { return s == Rootless || s == SingleID }

// UserID is the user that cases are built as: one that the machine does not
// know, so that nothing of the machine belongs to it.
const UserID = 70000

// paths are where a build of hako finds a case and leaves its result.
type paths struct {
	dir, out, agent string
	cache           string // a repository for results, "" for none
}

// hakoArgs are the arguments of `hako` for a case.
func (r *Rig) hakoArgs(c *Case, at paths) []string {
	dfDir, dfName := c.dockerfile()
	args := []string{"build", "--progress=plain", "--insecure-registry=" + r.Registry}
	if call := c.Call(); call != "" {
		args = append(args, "--call="+call)
	} else {
		args = append(args, "--no-push", "--oci-layout-path="+at.out)
	}
	add := func(flag, v string) { args = append(args, "--"+flag+"="+v) }
	if len(c.Options["dockerfile"]) > 0 {
		add("file", filepath.Join(at.dir, dfDir, dfName))
	}
	if e := c.Epoch(); e != "" {
		add("build-arg", "SOURCE_DATE_EPOCH="+e)
	}
	for _, flag := range []string{"build-arg", "label", "annotation", "target", "platform", "shm-size", "ulimit", "network", "add-host", "allow", "no-cache", "rewrite-timestamp"} {
		for _, v := range c.Options[flag] {
			switch flag {
			case "add-host":
				v = strings.Replace(v, "=", ":", 1)
			case "no-cache":
				v = "true"
			}
			add(flag, r.Address(v))
		}
	}
	names, values := c.contexts(r)
	for _, name := range names {
		value := values[name]
		if d, ok := strings.CutPrefix(value, "@"); ok {
			value = filepath.Join(at.dir, d)
		}
		add("build-context", name+"="+value)
	}
	for _, v := range c.Options["secret"] {
		add("secret", strings.ReplaceAll(v, "=@", "="+at.dir+"/"))
	}
	for _, v := range c.Options["ssh"] {
		add("ssh", v+"="+at.agent)
	}
	if at.cache != "" {
		args = append(args, "--cache", "--cache-repo="+at.cache)
	}
	return append(args, filepath.Join(at.dir, contextDir))
}

// Hako builds the case laid out in dir with hako in a sandbox. In place, that
// is on this machine if no command is going to be run, else in a container with
// an ordinary pod's rights, since such a build takes the root of wherever it is.
//
// With Rig.Cached it builds twice, the second time from what the first one left
// in a repository of its own, and returns what that gave.
func (r *Rig) Hako(ctx context.Context, c *Case, dir string, s Sandbox, runs bool) Built {
	if !r.Cached {
		return r.hako(ctx, c, dir, s, runs, "")
	}
	repo := r.Registry + "/cache/" + c.Name + "/" + string(s)
	first := r.hako(ctx, c, dir, s, runs, repo)
	if first.Err != nil {
		return first
	}
	if err := os.RemoveAll(first.Layout); err != nil {
		return Built{Err: err}
	}
	return r.hako(ctx, c, dir, s, runs, repo)
}

func (r *Rig) hako(ctx context.Context, c *Case, dir string, s Sandbox, runs bool, cache string) Built {
	out := filepath.Join(r.Dir, "out", c.Name, string(s))
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return Built{Err: err}
	}
	switch {
	case s.isUser():
		return r.hakoAsUser(ctx, c, s, cache)
	case s == InPlace && runs:
		return r.hakoInPod(ctx, c, dir, out, cache)
	}
	work := filepath.Join(r.Dir, "work", c.Name+"."+string(s))
	if s == Plain {
		dir, err := r.PlainDir()
		if err != nil {
			return Built{Err: err}
		}
		work = filepath.Join(dir, c.Name)
	}
	return built(exec.CommandContext(ctx, r.HakoBin, r.onHost(c, paths{dir, out, r.socket.path(), cache}, work)...), out)
}

// PlainDir returns a directory that the kernel lets nobody lay an overlay over, as
// it lies on one already. Users other than root may write to it.
func (r *Rig) PlainDir() (string, error) {
	at := filepath.Join(r.Dir, "plain", "at")
	r.plainOnce.Do(func() {
		opt := ""
		for _, name := range []string{"lower", "upper", "work", "at"} {
			dir := filepath.Join(r.Dir, "plain", name)
			if r.plainErr = os.MkdirAll(dir, 0o755); r.plainErr != nil {
				return
			}
			if name != "at" {
				opt += "," + name + "dir=" + dir
			}
		}
		if r.plainErr = unix.Mount("overlay", at, "overlay", 0, opt[1:]); r.plainErr == nil {
			r.plainErr = os.Chmod(at, 0o1777)
		}
	})
	if r.plainErr != nil {
		return "", fmt.Errorf("mount an overlay: %w", r.plainErr)
	}
	return at, nil
}

// onHost are the arguments of a build on this machine, whose files a command
// must not reach even if one is run where BuildKit ran none.
func (r *Rig) onHost(c *Case, at paths, work string) []string {
	return append(r.hakoArgs(c, at), "--isolation=namespace", "--work-dir="+work)
}

// hakoInPod mounts the case read-only, the result's directory, and the agent's
// socket at pathss that no case's image uses.
func (r *Rig) hakoInPod(ctx context.Context, c *Case, dir, out, cache string) Built {
	p, err := r.Podman(ctx)
	if err != nil {
		return Built{Err: err}
	}
	image, err := p.Scratch(ctx, "/kaniko/executor", "/kaniko/hako")
	if err != nil {
		return Built{Err: err}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return Built{Err: err}
	}
	res, err := p.Run(ctx, PodSpec{
		Image:   image,
		Command: append([]string{"/kaniko/hako"}, r.hakoArgs(c, paths{"/.rig/case", "/.rig/out", "/.rig/agent.sock", cache})...),
		Mounts: []Mount{
			{Source: dir, Target: "/.rig/case", ReadOnly: true},
			{Source: out, Target: "/.rig/out"},
			{Source: r.socket.path(), Target: "/.rig/agent.sock"},
		},
	})
	if err == nil && res.Exit != 0 {
		err = fmt.Errorf("exit status %d", res.Exit)
	}
	return Built{Layout: out, Answer: res.Stdout, Log: res.Stdout + res.Stderr, Err: err}
}

// asUser gives up root after it has put, for itself and its children alone, a
// user's entries where newuidmap looks for them.
const asUser = `for f in passwd group subuid subgid; do mount --bind "$0/$f" "/etc/$f" || exit 125; done
u=$1; shift
exec setpriv --reuid="$u" --regid="$u" --clear-groups -- "$@"`

// hakoAsUser builds with a copy of the case that belongs to the user: a person
// builds from files of their own.
func (r *Rig) hakoAsUser(ctx context.Context, c *Case, s Sandbox, cache string) Built {
	home := filepath.Join(r.Dir, "user", string(s), c.Name)
	if err := c.write(r, filepath.Join(home, "case"), UserID); err != nil {
		return Built{Err: err}
	}
	at := paths{filepath.Join(home, "case"), filepath.Join(home, "out"), r.socket.path(), cache}
	for _, path := range []string{r.Dir, filepath.Dir(filepath.Dir(home)), filepath.Dir(home)} {
		if err := os.Chmod(path, 0o711); err != nil { // the user has to pass through
			return Built{Err: err}
		}
	}
	if err := os.Chown(home, UserID, UserID); err != nil {
		return Built{Err: err}
	}
	args := append([]string{r.HakoBin}, r.onHost(c, at, filepath.Join(home, "work"))...)
	cmd, err := AsUser(ctx, home, s == Rootless, args...)
	if err != nil {
		return Built{Err: err}
	}
	return built(cmd, at.out)
}

// AsUser returns a command that the user UserID runs in the directory home, which is
// theirs. For the command alone the user has a name and, if asked for,
// subordinate ids; the files that say so are written below home.
func AsUser(ctx context.Context, home string, subordinate bool, args ...string) (*exec.Cmd, error) {
	etc, err := userFiles(filepath.Join(home, "etc"), subordinate)
	if err != nil {
		return nil, err
	}
	first := []string{"--mount", "--propagation=private", "/bin/sh", "-c", asUser, etc, fmt.Sprint(UserID)}
	cmd := exec.CommandContext(ctx, "unshare", append(first, args...)...)
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	return cmd, nil
}

// userFiles writes the files below /etc that name the user and its subordinate
// ids, if it is to have any.
func userFiles(dir string, subordinate bool) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write the user's entries: %w", err)
	}
	var ids string
	if subordinate {
		ids = "builder:200000:65536\n"
	}
	for name, text := range map[string]string{
		"passwd": fmt.Sprintf("root:x:0:0::/root:/bin/sh\nbuilder:x:%d:%d::/nonexistent:/bin/sh\n", UserID, UserID),
		"group":  fmt.Sprintf("root:x:0:\nbuilder:x:%d:\n", UserID),
		"subuid": ids, "subgid": ids,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("write the user's entries: %w", err)
		}
	}
	return dir, nil
}
