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
)

// A Built is what a builder made of a case.
type Built struct {
	// Layout is the directory of the OCI layout.
	Layout string
	// Log is what the builder said.
	Log string
	// Err is set if the build failed.
	Err error
}

// Lay writes a case's files into a new directory and returns it. The two
// builders read the same one: whoever writes to it spoils the other's result.
func (r *Rig) Lay(c *Case) (string, error) {
	dir := filepath.Join(r.Dir, "cases", c.Name)
	if err := c.write(r, dir); err != nil {
		return "", fmt.Errorf("write case %s: %w", c.Name, err)
	}
	return dir, nil
}

// BuildKit builds the case laid out in dir with buildkitd.
func (r *Rig) BuildKit(ctx context.Context, c *Case, dir string) Built {
	out := filepath.Join(r.Dir, "out", c.Name, "buildkit")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return Built{Err: err}
	}
	output := "type=oci,tar=false,dest=" + out
	for _, a := range c.Options["annotation"] {
		output += ",annotation." + a
	}
	if len(c.Options["rewrite-timestamp"]) > 0 {
		output += ",rewrite-timestamp=true"
	}
	dfDir, dfName := c.dockerfile()
	args := []string{
		"--addr", r.buildkit.addr, "build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local=context=" + filepath.Join(dir, contextDir), "--local=dockerfile=" + filepath.Join(dir, dfDir),
		"--opt=filename=" + dfName, "--output=" + output,
	}
	args = append(args, r.buildctlOptions(c, dir)...)
	cmd := exec.CommandContext(ctx, r.buildkit.ctl, args...)
	// buildctl would take an epoch of the environment for a build's option.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=")
	log, err := cmd.CombinedOutput()
	return Built{Layout: out, Log: string(log), Err: err}
}

func (r *Rig) buildctlOptions(c *Case, dir string) []string {
	var args []string
	opt := func(k, v string) { args = append(args, "--opt="+k+"="+v) }
	if e := c.Epoch(); e != "" {
		opt("build-arg:SOURCE_DATE_EPOCH", e)
	}
	for _, v := range c.Options["build-arg"] {
		opt("build-arg:"+cutKey(v), cutValue(r.Address(v)))
	}
	for _, v := range c.Options["label"] {
		opt("label:"+cutKey(v), cutValue(v))
	}
	for _, k := range []string{"target", "platform", "shm-size", "ulimit", "no-cache"} {
		for _, v := range c.Options[k] {
			opt(k, v)
		}
	}
	for _, v := range c.Options["network"] {
		opt("force-network-mode", v)
	}
	if v := c.Options["add-host"]; len(v) > 0 {
		opt("add-hosts", strings.Join(v, ","))
	}
	names, values := c.contexts(r)
	for _, name := range names {
		value := values[name]
		if d, ok := strings.CutPrefix(value, "@"); ok {
			args = append(args, "--local="+d+"="+filepath.Join(dir, d))
			value = "local:" + d
		}
		opt("context:"+name, value)
	}
	for _, v := range c.Options["secret"] {
		args = append(args, "--secret="+strings.ReplaceAll(v, "=@", "="+dir+"/"))
	}
	for _, v := range c.Options["ssh"] {
		args = append(args, "--ssh="+v+"="+r.socket.path())
	}
	return args
}

// HakoArgs are the arguments of `hako` for a case laid out in dir whose result
// goes to out.
func (r *Rig) HakoArgs(c *Case, dir, out, agent string) []string {
	dfDir, dfName := c.dockerfile()
	args := []string{
		"build", "--progress=plain", "--no-push", "--oci-layout-path=" + out, "--insecure-registry=" + r.Registry,
	}
	add := func(flag, v string) { args = append(args, "--"+flag+"="+v) }
	if len(c.Options["dockerfile"]) > 0 {
		add("file", filepath.Join(dir, dfDir, dfName))
	}
	if e := c.Epoch(); e != "" {
		add("build-arg", "SOURCE_DATE_EPOCH="+e)
	}
	for _, flag := range []string{"build-arg", "label", "annotation", "target", "platform", "shm-size", "ulimit", "network", "add-host", "no-cache", "rewrite-timestamp"} {
		for _, v := range c.Options[flag] {
			if flag == "add-host" {
				v = strings.Replace(v, "=", ":", 1)
			}
			add(flag, r.Address(v))
		}
	}
	names, values := c.contexts(r)
	for _, name := range names {
		value := values[name]
		if d, ok := strings.CutPrefix(value, "@"); ok {
			value = filepath.Join(dir, d)
		}
		add("build-context", name+"="+value)
	}
	for _, v := range c.Options["secret"] {
		add("secret", strings.ReplaceAll(v, "=@", "="+dir+"/"))
	}
	for _, v := range c.Options["ssh"] {
		add("ssh", v+"="+agent)
	}
	return append(args, filepath.Join(dir, contextDir))
}

// Hako builds the case laid out in dir with hako: on this machine if nothing
// is run, else in a container with an ordinary pod's rights, since a build in
// place takes the root of wherever it is.
func (r *Rig) Hako(ctx context.Context, c *Case, dir string) Built {
	out := filepath.Join(r.Dir, "out", c.Name, "hako")
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return Built{Err: err}
	}
	if c.HasRun() {
		return r.hakoInPod(ctx, c, dir, out)
	}
	args := append(r.HakoArgs(c, dir, out, r.socket.path()), "--work-dir="+filepath.Join(r.Dir, "work", c.Name))
	log, err := exec.CommandContext(ctx, r.HakoBin, args...).CombinedOutput()
	return Built{Layout: out, Log: string(log), Err: err}
}

// hakoInPod mounts the case read-only, the result's directory, and the agent's
// socket at places that no case's image uses.
func (r *Rig) hakoInPod(ctx context.Context, c *Case, dir, out string) Built {
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
		Command: append([]string{"/kaniko/hako"}, r.HakoArgs(c, "/.rig/case", "/.rig/out", "/.rig/agent.sock")...),
		Mounts: []Mount{
			{Source: dir, Target: "/.rig/case", ReadOnly: true},
			{Source: out, Target: "/.rig/out"},
			{Source: r.socket.path(), Target: "/.rig/agent.sock"},
		},
	})
	if err == nil && res.Exit != 0 {
		err = fmt.Errorf("exit status %d", res.Exit)
	}
	return Built{Layout: out, Log: res.Stdout + res.Stderr, Err: err}
}

func cutKey(s string) string   { k, _, _ := strings.Cut(s, "="); return k }
func cutValue(s string) string { _, v, _ := strings.Cut(s, "="); return v }

// BuildKitDirectory builds a directory's Dockerfile with buildkitd and no
// options but the default epoch.
func (r *Rig) BuildKitDirectory(ctx context.Context, bctx, out string) Built {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return Built{Err: err}
	}
	cmd := exec.CommandContext(ctx, r.buildkit.ctl, "--addr", r.buildkit.addr, "build", "--progress=plain",
		"--frontend=dockerfile.v0", "--local=context="+bctx, "--local=dockerfile="+bctx,
		"--opt=build-arg:SOURCE_DATE_EPOCH="+DefaultEpoch, "--output=type=oci,tar=false,dest="+out)
	log, err := cmd.CombinedOutput()
	return Built{Layout: out, Log: string(log), Err: err}
}
