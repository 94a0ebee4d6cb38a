// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"hako/internal/build"
	"hako/internal/sandbox"
)

func (a *App) doctorCommand() *cobra.Command {
	var v buildValues
	var format string
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Say what this place allows and what hako will do with it",
		Long: `Say what this place allows and what hako will do with it: rights, file system,
memory, where RUN would run and what that would move. Nothing is changed.

With -d the registry is asked too whether this account may pull and push.`,
		Example: `  hako doctor -d registry.example.com/app:1.4`,
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "text", "text or json")
	f.StringArrayVarP(&v.destinations, "destination", "d", nil, "ask the registry of this image `NAME` (repeatable)")
	v.addPlaceFlags(f)
	v.addRegistryFlags(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.Doctor == nil {
			return fmt.Errorf("doctor is not part of this program yet")
		}
		if err := applyEnv(f, a.Env, nil); err != nil {
			return err
		}
		if format != "text" && format != "json" {
			return usageErrorf("--format=%s: there are text and json", format)
		}
		opt, err := v.placeOptions(a)
		if err != nil {
			return err
		}
		opt.Destinations, opt.Executor = v.destinations, a.asExecutor
		d, err := a.Doctor(cmd.Context(), opt)
		if err != nil {
			return err
		}
		d.Version = a.Version
		return writeDiagnosis(a.Stdout, d, format)
	}
	return cmd
}

func writeDiagnosis(w io.Writer, d *build.Diagnosis, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(d)
	}
	_, err := io.WriteString(w, diagnosisText(d))
	return err
}

// diagnosisText is the page that people see: one thought a line.
func diagnosisText(d *build.Diagnosis) string {
	var b strings.Builder
	head := []string{fmt.Sprintf("hako %s %s/%s", d.Version, d.OS, d.Arch)}
	if d.Kernel != "" {
		head = append(head, "kernel "+d.Kernel)
	}
	if d.Runtime != "" {
		head = append(head, d.Runtime)
	} else {
		head = append(head, "no sign of a container")
	}
	fmt.Fprintln(&b, strings.Join(head, " · "))
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	if d.OS == "linux" {
		writeRights(line, d.Probe)
		writePlace(line, d.Probe)
	}
	writeSandboxes(line, d)
	for _, r := range d.Registries {
		scheme := r.Scheme
		if scheme == "" {
			scheme = "not reached"
		}
		line("registry", "%s (from -d): %s, %s", r.Host, scheme, r.Account)
		line("", "pull %s", r.Pull)
		line("", "push %s", r.Push)
	}
	return b.String()
}

type printLine func(name, format string, args ...any)

func writeRights(line printLine, p *sandbox.Probe) {
	ns := "not in a user namespace"
	if p.UserNamespace {
		ns = "in a user namespace"
	}
	line("user", "%d:%d, %s", p.UID, p.GID, ns)
	switch {
	case p.CapMask == podCapabilities:
		line("rights", "capabilities %s (the runtime's default 14)", p.CapMask)
	case len(p.Capabilities) == 0:
		line("rights", "no capabilities")
	case len(p.Capabilities) > 20:
		line("rights", "capabilities %s (%d of them)", p.CapMask, len(p.Capabilities))
	default:
		line("rights", "capabilities %s: %s", p.CapMask, strings.Join(p.Capabilities, " "))
	}
	if p.NoNewPrivs {
		line("", "no new privileges: setuid programs and file capabilities have no effect in RUN")
	}
	line("guards", "seccomp %s · AppArmor %s · SELinux %s", p.Seccomp, p.AppArmor, p.SELinux)
	var may, mayNot []string
	for _, a := range p.Abilities {
		if a.OK {
			may = append(may, a.Name)
		} else {
			mayNot = append(mayNot, a.Name+" ("+a.Why+")")
		}
	}
	line("may", "%s", orNothing(may))
	line("may not", "%s", orNothing(mayNot))
}

// podCapabilities is the default set of docker, containerd and CRI-O.
const podCapabilities = "a80425fb"

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, " ")
}

func writePlace(line printLine, p *sandbox.Probe) {
	writable := "not writable for this user"
	switch {
	case p.Root.ReadOnly:
		writable = "read-only"
	case p.Root.Writable:
		writable = "writable"
	}
	line("root", "%s, %s, %.1f GiB free", p.Root.Type, writable, float64(p.Root.Free)/(1<<30))
	switch {
	case p.Root.TrustsCtime == nil:
	case *p.Root.TrustsCtime:
		line("", "shows every change (ctime): files are compared by their metadata after a RUN")
	default:
		line("", "hides changes (%s): file contents are compared after each RUN, which takes longer", p.Root.CtimeWhy)
	}
	writeParking(line, &p.Parking)
	if p.Parking.Known {
		line("in view", "%s stay visible to RUN", orNothing(p.InView))
	}
	memory := "no limit known"
	if p.MemoryLimit > 0 {
		memory = fmt.Sprintf("limit %d MiB", p.MemoryLimit>>20)
	}
	switch {
	case p.OOMGroup == nil:
	case *p.OOMGroup:
		memory += "; running out of it kills the whole container (memory.oom.group=1)"
	default:
		memory += "; running out of it kills one process (memory.oom.group=0)"
	}
	line("memory", "%s · %d CPUs", memory, p.CPUs)
}

func writeParking(line printLine, p *sandbox.Parking) {
	switch {
	case !p.Known:
		line("parking", "not possible: %s", p.Why)
	case len(p.Copies) == 0:
		line("parking", "%d renames, 0 bytes copied", len(p.Renames))
	default:
		line("parking", "%d renames; %s came with the container's image and cannot be renamed (EXDEV):",
			len(p.Renames), strings.Join(p.Copies, " "))
		line("", "at most %d files, %s are copied before the first RUN", p.CopyFiles, decimal(p.CopyBytes))
	}
}

func writeSandboxes(line printLine, d *build.Diagnosis) {
	for i, s := range d.Sandboxes {
		name := ""
		if i == 0 {
			name = "sandbox"
		}
		verdict := "no "
		if s.OK {
			verdict = "yes"
		}
		why := s.Why
		if s.Chosen {
			why = strings.TrimSuffix("chosen; "+s.Why, "; ")
		}
		line(name, "%-9s  %s  %s", s.Name, verdict, why)
	}
	if d.Runs {
		pace := "RUN steps one at a time"
		if d.Parallel {
			pace = "independent RUN steps at the same time"
		}
		line("builds", "everything except %s; %s", strings.Join(d.Except, ", "), pace)
		return
	}
	line("builds", "Dockerfiles without RUN: FROM, COPY, ADD, ENV … work here; RUN does not")
	line("for RUN", "any one of these is enough:")
	for _, r := range d.Remedies {
		line("", "  %s", r)
	}
}
