// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
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
	// Answer is what it printed of a Dockerfile that it was only asked about.
	Answer string
	// Ran says that commands were run.
	Ran bool
	// Err is set if the build failed.
	Err error
}

// Lay writes a case's files into a new directory and returns it. The two
// builders read the same one: whoever writes to it spoils the other's result.
func (r *Rig) Lay(c *Case) (string, error) {
	dir := filepath.Join(r.Dir, "cases", c.Name)
	if err := c.write(r, dir, 0); err != nil {
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
		"--opt=filename=" + dfName,
	}
	if call := c.Call(); call != "" {
		args = append(args, "--opt=requestid="+requests()[call])
	} else {
		args = append(args, "--output="+output)
	}
	args = append(args, r.buildctlOptions(c, dir)...)
	cmd := exec.CommandContext(ctx, r.buildkit.ctl, args...)
	// buildctl would take an epoch of the environment for a build's option.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=")
	return built(cmd, out)
}

// requests are the frontend's names of what can be asked of a Dockerfile.
func requests() map[string]string {
	return map[string]string{"check": "frontend.lint", "outline": "frontend.outline", "targets": "frontend.targets"}
}

// built runs a builder whose result goes to layout.
func built(cmd *exec.Cmd, layout string) Built {
	var stdout, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &log
	err := cmd.Run()
	return Built{
		Layout: layout, Answer: stdout.String(), Log: stdout.String() + log.String(), Err: err,
		Ran: strings.Contains(strings.ToUpper(log.String()), "] RUN"),
	}
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
	for _, v := range c.Options["allow"] {
		args = append(args, "--allow="+v)
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
