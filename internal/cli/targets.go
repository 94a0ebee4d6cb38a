// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"

	"github.com/distribution/reference"

	"hako/internal/build"
)

// setTargets reads --target STAGE, or STAGE=NAME as often as there are images.
func (v *buildValues) setTargets(opt *build.Options, _ build.Env) error {
	for _, item := range v.targets {
		stage, name, hasName := strings.Cut(item, "=")
		if !hasName {
			if len(v.targets) > 1 {
				return usageErrorf("--target %s: of several targets each needs a name for its image: --target %s=REGISTRY/NAME:TAG", item, item)
			}
			opt.Target = item
			return nil
		}
		if stage == "" || name == "" {
			return usageErrorf("--target %q: want STAGE, or STAGE=REGISTRY/NAME:TAG", item)
		}
		same := func(t build.Target) bool { return strings.EqualFold(t.Stage, stage) }
		i := slices.IndexFunc(opt.Targets, same)
		if i < 0 {
			i = len(opt.Targets)
			opt.Targets = append(opt.Targets, build.Target{Stage: stage})
		}
		opt.Targets[i].Names = append(opt.Targets[i].Names, name)
	}
	return nil
}

// checkTargets finds what does not go together with targets that have names.
func checkTargets(opt *build.Options) error {
	if len(opt.Targets) == 0 {
		return nil
	}
	if others := slices.Concat(opt.Destinations, opt.Tags); len(others) > 0 {
		return usageErrorf("%s has no target: use --target %s=%s", others[0], opt.Targets[0].Stage, others[0])
	}
	if err := checkTargetNames(opt.Targets); err != nil {
		return err
	}
	if len(opt.Targets) == 1 {
		return nil
	}
	if opt.Call != build.CallBuild && opt.Call != build.CallPlan {
		return usageErrorf("--call=%s is about one target, and there are %d", opt.Call, len(opt.Targets))
	}
	files := []struct{ flag, path, instead string }{
		{"digest-file", opt.DigestFile, ", or use --image-name-tag-with-digest-file, which has a line for each"},
		{"iidfile", opt.ImageIDFile, ""},
		{"tar-path", opt.TarPath, ""},
		{"oci-layout-path", opt.OCILayoutPath, ""},
	}
	for _, out := range opt.Outputs {
		if out.Dest == "-" {
			return usageErrorf("only one image can go to standard output, and there are %d targets", len(opt.Targets))
		}
		files = append(files, struct{ flag, path, instead string }{"output", out.Dest, ""})
	}
	for _, f := range files {
		if f.path != "" && !strings.Contains(f.path, build.TargetPlace) {
			return usageErrorf("--%s %s: %d targets cannot share it; put %s in its name%s", f.flag, f.path, len(opt.Targets), build.TargetPlace, f.instead)
		}
	}
	return nil
}

// checkTargetNames refuses one name for the images of two targets.
func checkTargetNames(targets []build.Target) error {
	whose := map[string]string{}
	for _, t := range targets {
		for _, n := range t.Names {
			named, err := reference.ParseNormalizedNamed(n)
			if err != nil {
				return usageErrorf("%q is no name for an image: %v", n, err)
			}
			full := reference.TagNameOnly(named).String()
			if other, ok := whose[full]; ok && other != t.Stage {
				return usageErrorf("%s names the images of two targets, %s and %s", n, other, t.Stage)
			}
			whose[full] = t.Stage
		}
	}
	return nil
}
