// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/sandbox"
	"hako/internal/tree"
)

func treeMode(n uint64) tree.Mode { return tree.Mode(n) & tree.ModePerm }

// exec runs a command and makes a layer of what it changed.
func (in *Interpreter) exec(ctx context.Context, op *pb.ExecOp, dgst digest.Digest, inputs []*layer.Ref) ([]*layer.Ref, error) {
	root, err := rootMount(op)
	if err != nil {
		return nil, err
	}
	base := &layer.Ref{}
	if root.Input >= 0 && inputs[root.Input] != nil {
		if base, err = in.asLayers(ctx, inputs[root.Input], dgst); err != nil {
			return nil, err
		}
	}
	p, err := in.process(ctx, op, inputs)
	if err != nil {
		return nil, err
	}
	p.Stdout = &output{sink: in.opt.Sink, vertex: dgst, stream: 1}
	p.Stderr = &output{sink: in.opt.Sink, vertex: dgst, stream: 2}
	sb, err := in.sandbox(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.settled(ctx, base); err != nil {
		return nil, err
	}
	res, err := sb.Run(ctx, base, p)
	if err != nil {
		return nil, err
	}
	for _, l := range base.Layers {
		l.Forget() // the root has it now; from here on its blob serves
	}
	// What BuildKit calls such a layer, where history has no entry of its own for it.
	about := "mount / from exec " + strings.Join(p.Args, " ")
	l, err := in.writeExec(ctx, base, res.Changes, dgst, about)
	if l != nil {
		l.Forget() // the next command changes what it was read from
	}
	if err = errors.Join(err, res.Close(l)); err != nil {
		return nil, err
	}
	memory := ""
	if res.PeakRSS > 0 {
		memory = " · peak memory " + units.BytesSize(float64(res.PeakRSS))
	}
	if res.Layers > 0 {
		in.logf(dgst, "root: %d layers, %s, unpacked; waited %.1fs for it",
			res.Layers, units.HumanSize(float64(res.Bytes)), res.Waited.Seconds())
	}
	in.logf(dgst, "%d files looked at in %.2fs, %d changed · layer %s%s",
		res.Looked, res.Scan.Seconds(), res.Changed, units.HumanSize(float64(l.Descriptor().Size)), memory)
	return execOutputs(op, inputs, appendLayer(base, l))
}

// writeExec makes a layer of what a command changed in base, and of what running
// one there makes.
func (in *Interpreter) writeExec(ctx context.Context, base *layer.Ref, changes changeSeq, dgst digest.Digest, name string) (*layer.Layer, error) {
	var fsys tree.FS
	if len(base.Layers) > 0 {
		var err error
		if fsys, err = base.Tree(ctx); err != nil {
			return nil, err
		}
	}
	made, err := mountPoints(fsys, in.opt.Clock)
	if err != nil {
		return nil, err
	}
	opt := in.writeOptions(name)
	// Where a secret may be found in the layer, not even a part of it leaves.
	if in.opt.OnGrowing != nil && len(opt.Forbidden) == 0 {
		opt.Growing = in.opt.OnGrowing(dgst)
	}
	return in.write(ctx, withChanges(changes, made), dgst, opt)
}

// rootMount returns the mount that is the command's root.
func rootMount(op *pb.ExecOp) (*pb.Mount, error) {
	for _, m := range op.Mounts {
		if m.Dest == "/" {
			if m.MountType != pb.MountType_BIND || m.Readonly {
				return nil, errors.New("the root of a command must be a writable tree")
			}
			return m, nil
		}
	}
	return nil, errors.New("a command without a root")
}

// execOutputs returns a result per output of the op. Secrets and ssh sockets carry
// an output number of 0 and have none.
func execOutputs(op *pb.ExecOp, inputs []*layer.Ref, root *layer.Ref) ([]*layer.Ref, error) {
	outs := make(map[int64]*layer.Ref)
	for _, m := range op.Mounts {
		if m.Output < 0 || m.MountType != pb.MountType_BIND && m.MountType != pb.MountType_CACHE {
			continue
		}
		switch {
		case m.Dest == "/":
			outs[m.Output] = root
		case m.Readonly && m.Input >= 0:
			outs[m.Output] = inputs[m.Input]
		case m.Readonly:
			outs[m.Output] = nil
		default:
			return nil, fmt.Errorf("what a command writes to the mount %s cannot be kept here", m.Dest)
		}
	}
	list := make([]*layer.Ref, len(outs))
	for i, r := range outs {
		if int(i) >= len(list) {
			return nil, fmt.Errorf("output %d of a command with %d", i, len(outs))
		}
		list[i] = r
	}
	return list, nil
}

// process describes the command for the sandbox.
func (in *Interpreter) process(ctx context.Context, op *pb.ExecOp, inputs []*layer.Ref) (*sandbox.Process, error) {
	meta := op.Meta
	p := &sandbox.Process{
		Args: meta.Args, Cwd: meta.Cwd, User: meta.User, Hostname: meta.Hostname, NoNetwork: op.Network == pb.NetMode_NONE,
		Insecure: op.Security == pb.SecurityMode_INSECURE,
	}
	for _, l := range meta.Ulimit {
		p.Limits = append(p.Limits, sandbox.Limit{Name: l.Name, Soft: l.Soft, Hard: l.Hard})
	}
	p.Env = append(p.Env, meta.Env...)
	p.Env = append(p.Env, proxyEnv(meta.ProxyEnv)...)
	for _, h := range meta.ExtraHosts {
		p.ExtraHosts = append(p.ExtraHosts, sandbox.HostIP{Host: h.Host, IP: h.IP})
	}
	for _, c := range meta.ValidExitCodes {
		p.ValidExitCodes = append(p.ValidExitCodes, int(c))
	}
	for _, m := range op.Mounts {
		if m.Dest == "/" {
			continue
		}
		if err := in.mount(ctx, p, m, inputs); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	for _, s := range op.Secretenv {
		v, err := in.secret(s.ID, s.Optional)
		if err != nil {
			return nil, err
		}
		p.Env = append(p.Env, s.Name+"="+string(v))
	}
	return p, nil
}

// proxyEnv returns the proxy variables in both cases, as BuildKit sets them
// (solver/llbsolver/ops/exec.go).
func proxyEnv(p *pb.ProxyEnv) []string {
	if p == nil {
		return nil
	}
	var out []string
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HttpProxy},
		{"HTTPS_PROXY", p.HttpsProxy},
		{"FTP_PROXY", p.FtpProxy},
		{"NO_PROXY", p.NoProxy},
		{"ALL_PROXY", p.AllProxy},
	} {
		if v.value != "" {
			out = append(out, v.name+"="+v.value, strings.ToLower(v.name)+"="+v.value)
		}
	}
	return out
}

func (in *Interpreter) mount(ctx context.Context, p *sandbox.Process, m *pb.Mount, inputs []*layer.Ref) error {
	sm := sandbox.Mount{Dest: m.Dest, Selector: m.Selector, ReadOnly: m.Readonly}
	switch m.MountType {
	case pb.MountType_BIND, pb.MountType_CACHE:
		if m.Input >= 0 {
			if err := in.settled(ctx, inputs[m.Input]); err != nil {
				return err
			}
			fsys, err := inputs[m.Input].Tree(ctx)
			if err != nil {
				return err
			}
			sm.Tree = fsys
		}
		if m.MountType == pb.MountType_CACHE {
			sm.Type = sandbox.Cache
			sm.CacheID = m.CacheOpt.GetID()
			sm.Private = m.CacheOpt.GetSharing() == pb.CacheSharingOpt_PRIVATE
			sm.Locked = m.CacheOpt.GetSharing() == pb.CacheSharingOpt_LOCKED
			if m.Input >= 0 { // caches with different beginnings are different (MM:72)
				sm.CacheID += ":" + string(inputs[m.Input].ChainID())
			}
		}
	case pb.MountType_TMPFS:
		sm.Type, sm.Size = sandbox.Tmpfs, m.TmpfsOpt.GetSize()
	case pb.MountType_SECRET:
		v, err := in.secret(m.SecretOpt.ID, m.SecretOpt.Optional)
		if err != nil || v == nil {
			return err
		}
		sm.Type, sm.Data = sandbox.Secret, v
		sm.Mode, sm.UID, sm.GID = treeMode(uint64(m.SecretOpt.Mode)&0o777), m.SecretOpt.Uid, m.SecretOpt.Gid
	case pb.MountType_SSH:
		sm.Type = sandbox.SSH
		id := m.SSHOpt.ID
		if id == "" {
			id = "default"
		}
		if sm.Dial = in.opt.Agent(id); sm.Dial == nil {
			if m.SSHOpt.Optional {
				return nil
			}
			return &MissingError{What: fmt.Sprintf("the ssh agent %q", id), Remedy: "--ssh " + id + ", or --ssh " + id + "=PATH of a socket or a key"}
		}
		sm.Mode, sm.UID, sm.GID = treeMode(uint64(m.SSHOpt.Mode)&0o777), m.SSHOpt.Uid, m.SSHOpt.Gid
	default:
		return fmt.Errorf("mount type %s is not supported", m.MountType)
	}
	p.Mounts = append(p.Mounts, sm)
	return nil
}

// secret returns a secret's value and remembers it as something no layer may
// hold. A missing optional one is nil.
func (in *Interpreter) secret(id string, optional bool) ([]byte, error) {
	v, ok, err := in.opt.Secret(id)
	if err != nil {
		return nil, fmt.Errorf("secret %q: %w", id, err)
	}
	if !ok {
		if optional {
			return nil, nil
		}
		return nil, &MissingError{What: fmt.Sprintf("the secret %q", id), Remedy: "--secret id=" + id + ",src=FILE or --secret id=" + id + ",env=NAME"}
	}
	if v == nil {
		v = []byte{}
	}
	// Short values would be found in files that have nothing to do with them.
	if len(bytes.TrimSpace(v)) >= 8 {
		in.mu.Lock()
		in.used[digest.FromBytes(v)] = fmt.Sprintf("the secret %q", id)
		in.mu.Unlock()
	}
	return v, nil
}

func (in *Interpreter) forbidden() map[digest.Digest]string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return maps.Clone(in.used)
}

// output sends what a command prints.
type output struct {
	sink   progress.Sink
	vertex digest.Digest
	stream int
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.sink.Send(progress.Log{Vertex: o.vertex, Stream: o.stream, Data: bytes.Clone(p), Time: time.Now()})
	return len(p), nil
}
