// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/sandbox"
)

// A foreign knows for which other platforms commands run here: by themselves,
// like 386's on amd64, or in an emulator that the node has. It is safe for
// concurrent use.
type foreign struct {
	dir  string // for the programs that it tries
	logf func(format string, args ...any)

	mu    sync.Mutex
	tried map[string]bool // by architecture
}

// unless returns p, or nil if commands for it run here.
func (f *foreign) unless(ctx context.Context, p *pb.Platform) *pb.Platform {
	if !isForeign(p) {
		return nil
	}
	if p.OS != "linux" {
		return p
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	runs, ok := f.tried[p.Architecture]
	if !ok {
		err := sandbox.Executes(ctx, f.dir, p.Architecture)
		if runs = err == nil; runs {
			f.logf("commands for linux/%s run on this machine, which is linux/%s", p.Architecture, runtime.GOARCH)
		}
		if f.tried == nil {
			f.tried = map[string]bool{}
		}
		f.tried[p.Architecture] = runs
	}
	if runs {
		return nil
	}
	return p
}

// isForeign tells whether a platform is not this machine's own.
func isForeign(p *pb.Platform) bool {
	return p != nil && (p.Architecture != runtime.GOARCH || p.OS != "linux")
}

// remedyForeign says what helps where commands for a platform do not run.
func remedyForeign(p *pb.Platform) string {
	name := p.OS + "/" + p.Architecture
	s := "a pod on a " + name + " machine, with --index-tag" +
		"\n         or RUN only in stages FROM --platform=$BUILDPLATFORM"
	if p.OS == "linux" {
		s += "\n         or an emulator, which the node's owner installs: docker run --privileged tonistiigi/binfmt --install " + p.Architecture
	}
	return s
}

// exceptForeign is how doctor lists that commands for other platforms do not run.
const exceptForeign = "RUN for another platform"

// tryForeign takes the platforms for which commands run here out of what does not.
func (d *Diagnosis) tryForeign(ctx context.Context, dir string) {
	i := slices.Index(d.Except, exceptForeign)
	if i < 0 {
		return
	}
	var runs []string
	for _, arch := range sandbox.Architectures() {
		if arch != runtime.GOARCH && sandbox.Executes(ctx, dir, arch) == nil {
			runs = append(runs, "linux/"+arch)
		}
	}
	if len(runs) > 0 {
		d.Except[i] += " (but for " + strings.Join(runs, ", ") + ")"
	}
}
