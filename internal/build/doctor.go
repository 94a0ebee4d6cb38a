// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"

	"hako/internal/registry"
	"hako/internal/sandbox"
)

// A Diagnosis is what a place allows and what hako will do with it, as data.
type Diagnosis struct {
	Version string `json:"version"`
	*sandbox.Probe
	Sandboxes []SandboxChoice `json:"sandboxes"`
	// Runs tells whether RUN works here, Remedies what would help if not: any
	// one of them.
	Runs     bool     `json:"runs"`
	Remedies []string `json:"remedies,omitempty"`
	// Parallel tells whether independent RUN steps run at the same time.
	Parallel bool `json:"parallel"`
	// Except lists what of a Dockerfile stops a build here before anything runs.
	Except     []string         `json:"except"`
	Registries []RegistryReport `json:"registries,omitempty"`
}

// A SandboxChoice is a way to run commands, and whether it is open here.
type SandboxChoice struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Chosen bool   `json:"chosen"`
	Why    string `json:"why,omitempty"`
}

// A RegistryReport is what a registry lets this account do.
type RegistryReport struct {
	Ref     string `json:"ref"`
	Host    string `json:"host"`
	Scheme  string `json:"scheme,omitempty"` // "" if it was not reached
	Account string `json:"account"`
	Pull    string `json:"pull"` // "yes", or what was answered
	Push    string `json:"push"`
}

// Diagnose finds out what this place allows. Nothing is moved and nothing is
// left behind.
func Diagnose(ctx context.Context, opt Options) (*Diagnosis, error) {
	d := &Diagnosis{Probe: sandbox.Examine(ctx, sandbox.ProbeOptions{WorkDir: workDir(&opt), Env: opt.Env.Get})}
	d.chooseSandbox(ctx, opt)
	d.tryForeign(ctx, workDir(&opt))
	return d, d.askRegistries(ctx, &opt)
}

func (d *Diagnosis) chooseSandbox(ctx context.Context, opt Options) {
	room := func(executor bool, isolation string) *room {
		o := opt
		o.Executor, o.Isolation = executor, isolation
		return newRoom(ctx, &o, nil, nil, nil)
	}
	namespace := SandboxChoice{Name: isolationNamespace}
	why, err := room(true, isolationNamespace).namespace(ctx)
	if namespace.OK, namespace.Why = err == nil, why; err != nil {
		namespace.Why = err.Error()
	}
	inplace := SandboxChoice{Name: isolationInPlace}
	if err := room(true, isolationInPlace).inPlace(); err != nil {
		inplace.Why = reason(err)
		if none, ok := errors.AsType[*NoSandboxError](err); ok && !namespace.OK {
			d.Remedies = none.Remedy
		}
	} else {
		inplace.OK = true
		if err := room(opt.Executor, opt.Isolation).inPlace(); err != nil {
			inplace.Why = "by the executor, or with --isolation=inplace: " + reason(err)
		}
	}
	namespace.Chosen = namespace.OK && opt.Isolation != isolationInPlace && !staysInPlace(&opt)
	inplace.Chosen = inplace.OK && !namespace.Chosen && opt.Isolation != isolationNamespace
	d.Runs, d.Parallel = namespace.Chosen || inplace.Chosen, namespace.Chosen
	d.Sandboxes = []SandboxChoice{
		namespace, inplace,
		{Name: "kernel", Why: "not in this version"},
	}
	switch {
	case namespace.Chosen:
		if d.Except = everywhereExcept(); d.UserNamespace || d.UID != 0 || !sandbox.IsAdmin() {
			d.Except = append([]string{"RUN --security=insecure"}, d.Except...)
		}
	case inplace.Chosen:
		d.Except = inPlaceExcept()
	default:
		d.Except = []string{"RUN"}
	}
}

// everywhereExcept names what unsupported refuses in every sandbox.
func everywhereExcept() []string {
	return []string{"RUN for another platform"}
}

// inPlaceExcept names what unsupported refuses.
func inPlaceExcept() []string {
	return append([]string{"RUN --security=insecure", "RUN --network=none", "RUN --mount=type=tmpfs,size=", "--hostname", "--shm-size", "--ulimit"}, everywhereExcept()...)
}

func reason(err error) string {
	if none, ok := errors.AsType[*NoSandboxError](err); ok {
		return none.Why
	}
	return err.Error()
}

func (d *Diagnosis) askRegistries(ctx context.Context, opt *Options) error {
	names := opt.Names()
	if len(names) == 0 {
		return nil
	}
	n, err := openNetwork(opt.Env)
	if err != nil {
		return err
	}
	keys, err := openKeychain(opt, n, nil)
	if err != nil {
		return err
	}
	defer keys.Close() //nolint:errcheck // only read from
	client, err := openRegistry(opt, n, keys, nil, nil)
	if err != nil {
		return err
	}
	for _, name := range names {
		ref, err := registry.ParseReference(name)
		if err != nil {
			return err
		}
		s := client.Inspect(ctx, ref)
		d.Registries = append(d.Registries, RegistryReport{
			Ref: name, Host: ref.Context().RegistryStr(), Scheme: s.Scheme, Account: s.Account.String(),
			Pull: answer(s.Pull), Push: answer(s.Push),
		})
	}
	return nil
}

func answer(err error) string {
	if err == nil {
		return "yes"
	}
	return "no: " + err.Error()
}
