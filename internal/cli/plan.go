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
)

// planCommand is "hako plan": a build that stops before it does anything.
func (a *App) planCommand() *cobra.Command {
	var v buildValues
	var format string
	cmd := &cobra.Command{
		Use:   "plan [flags] [CONTEXT]",
		Short: "Say what a build would fetch, run, copy and push",
		Long: `Say what "hako build" with the same flags would do, step by step, and what it
would cost. The Dockerfile is converted, base images are looked up and the build
contexts are opened; no layer is fetched, nothing is run or pushed.

With the flags of a cache it is asked, and nothing is written to it. The plan goes
to standard output and depends on Dockerfile, contexts, base images, caches and
flags alone. What this place cannot honour is the error that the build would
end with. "hako build --dryrun" and "executor --dryrun" do the same.`,
		Example: `  hako plan --push -t registry.example.com/app:1.4 .
  hako plan --format=json --target test .`,
		Args: cobra.MaximumNArgs(1),
	}
	known := v.addFlags(cmd)
	cmd.Flags().StringVar(&format, "format", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := v.setContext(cmd, args, a.Env); err != nil {
			return err
		}
		if err := oneOf("format", format, "text", "json"); err != nil {
			return err
		}
		v.dryRun, v.dryRunJSON = true, format == "json"
		return a.runBuild(cmd.Context(), &v, known, a.asExecutor)
	}
	return cmd
}

func writePlan(w io.Writer, p *build.Plan, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(p)
	}
	var b strings.Builder
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Line > 0 {
			fmt.Fprintf(&b, "%s:%d ", p.Dockerfile, s.Line)
		}
		fmt.Fprintf(&b, "%s\n", oneLine(s.Name))
		for _, l := range stepLines(s) {
			fmt.Fprintf(&b, "   %-8s %s\n", s.Action, l)
		}
		if s.Cache != nil {
			fmt.Fprintf(&b, "   %-8s %s\n", "cache", cacheText(s.Cache))
		}
	}
	for _, s := range p.Skipped {
		fmt.Fprintf(&b, "%s:%d stage %s is not needed\n", p.Dockerfile, s.Line, s.Name)
	}
	fmt.Fprintf(&b, "for %s\n", strings.Join(p.Platforms, ", "))
	for _, o := range p.Outputs {
		fmt.Fprintf(&b, "to %s: at most %s and the config%s\n", outputText(&o), count(o.NewLayers, "new layer"), baseText(&o.PlanLayers))
	}
	fmt.Fprintf(&b, "would %s\n", totalText(p))
	_, err := io.WriteString(w, b.String())
	return err
}

// stepLines says what a step does, mostly in one line.
func stepLines(s *build.PlanStep) []string {
	switch {
	case s.Image != nil:
		return []string{imageText(s.Image)}
	case s.URL != "":
		return []string{s.URL + ", of a size not known before"}
	case s.Run != nil:
		return []string{runText(s.Run)}
	case len(s.Copies) == 0:
		return []string{map[string]string{build.PlanWrite: "what the Dockerfile says", build.PlanMerge: "the layer on top, as it is"}[s.Action]}
	}
	var out []string
	for _, c := range s.Copies {
		text := fmt.Sprintf("%s of %s", c.Path, c.From)
		if s.Action == build.PlanContext {
			text = c.From
		}
		if c.Counted {
			text += fmt.Sprintf(": %s, %s", count(c.Files, "file"), decimal(c.Bytes))
		}
		out = append(out, text)
	}
	return out
}

func imageText(i *build.PlanImage) string {
	all := fmt.Sprintf("%s, %s", count(i.Layers, "layer"), decimal(i.Size))
	switch {
	case i.Layers == 0:
		return "nothing: it has no layers"
	case i.Unpack:
		return fmt.Sprintf("%s to download of %s; unpacked for RUN", decimal(i.Download), all)
	case i.Download > 0:
		return fmt.Sprintf("%s to download of %s; not unpacked", decimal(i.Download), all)
	case i.Index:
		return "nothing: the index of its " + all + ", is known"
	}
	return "nothing: its " + all + ", are only passed on"
}

func cacheText(c *build.PlanCache) string {
	switch c.State {
	case build.PlanFound:
		return "found, " + decimal(c.Size)
	case build.PlanNotNeeded:
		return "not needed: what is made of it was found"
	}
	return "MISS " + oneLine(c.Why)
}

func runText(r *build.PlanCommand) string {
	parts := []string{"a command"}
	for _, m := range r.Mounts {
		t := m.Type + " " + m.Target
		if m.From != "" {
			t += " of " + m.From
		}
		parts = append(parts, t)
	}
	if r.Network != "" {
		parts = append(parts, "network "+r.Network)
	}
	if r.Security != "" {
		parts = append(parts, "security "+r.Security)
	}
	return strings.Join(parts, " · ")
}

func outputText(o *build.PlanOutput) string {
	if o.Target == "" {
		return o.To
	}
	return o.To + ", of " + o.Target
}

func baseText(t *build.PlanLayers) string {
	if t.BaseLayers == 0 {
		return ""
	}
	return fmt.Sprintf("; %s of base images, %s, where missing", count(t.BaseLayers, "layer"), decimal(t.BaseSize))
}

func totalText(p *build.Plan) string {
	t := &p.Total
	parts := []string{"download " + decimal(t.Download)}
	if t.URLs > 0 {
		parts[0] += " and " + count(t.URLs, "URL")
	}
	if t.Cached > 0 {
		parts = append([]string{"take " + count(t.Cached, "step") + " from the cache"}, parts...)
	}
	parts = append(parts, "unpack "+count(t.Unpack, "base"), "run "+count(t.Run, "command"), "make "+copies(t.Copy))
	for _, o := range p.Outputs {
		if o.Push {
			parts = append(parts, fmt.Sprintf("push up to %s + config", count(t.NewLayers, "layer")))
			break
		}
	}
	return strings.Join(parts, ", ")
}

func copies(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return fmt.Sprintf("%d copies", n)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
