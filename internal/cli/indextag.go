// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"

	"github.com/containerd/platforms"
	"github.com/spf13/pflag"

	"hako/internal/build"
)

func (v *buildValues) addIndexFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&v.indexTags, "index-tag", nil, "push the image of one platform as NAME-os-arch; the last build completes the index `NAME` (repeatable)")
	f.StringArrayVar(&v.indexPlatforms, "index-platforms", nil, "all platforms of the index, `os/arch,…`; what is built is --platform or this machine's")
	f.StringVar(&v.indexID, "index-id", "", "what the builds of one index have in common and no others, like the `PIPELINE` or commit")
}

// setIndex reads the flags of an index that several builds make.
func (v *buildValues) setIndex(opt *build.Options, _ build.Env) (err error) {
	s := &opt.SharedIndex
	s.Tags, s.ID = v.indexTags, v.indexID
	s.Platforms, err = parsePlatforms(v.indexPlatforms)
	if err != nil {
		return usageErrorf("--index-platforms: want os/arch[/variant],…, like linux/amd64,linux/arm64")
	}
	return nil
}

// checkIndex finds what does not go together with an index of several builds.
func checkIndex(opt *build.Options) error {
	s := &opt.SharedIndex
	if len(s.Tags) == 0 {
		if len(s.Platforms) > 0 || s.ID != "" {
			return usageErrorf("--index-platforms and --index-id are for --index-tag")
		}
		return nil
	}
	var names []string
	for _, p := range s.Platforms {
		n := platforms.FormatAll(p)
		if slices.Contains(names, n) {
			return usageErrorf("--index-platforms: %s is there twice", n)
		}
		names = append(names, n)
	}
	switch {
	case len(names) == 0:
		return usageErrorf("--index-tag: name all platforms of the index with --index-platforms, like linux/amd64,linux/arm64")
	case s.ID == "":
		return usageErrorf("--index-tag: give the builds of one index, and no others, the same --index-id, like the pipeline's or the commit's: " +
			"without it an image that an older build left could get in")
	case len(opt.Names()) > 0:
		return usageErrorf("%s would have the image of one platform; name the index with --index-tag (repeatable), and nothing with -t, -d or --target", opt.Names()[0])
	case opt.NoPush:
		return usageErrorf("--index-tag and --no-push contradict each other")
	case len(opt.Outputs) > 0 || opt.TarPath != "" || opt.OCILayoutPath != "":
		return usageErrorf("--index-tag pushes the image; write files in a build of their own")
	case opt.OCIMediaTypes != nil && !*opt.OCIMediaTypes:
		return usageErrorf("--index-tag needs OCI media types, and Docker's were asked for")
	case len(opt.Platforms) > 1:
		return usageErrorf("--index-tag: a build is for one platform; all of them are named with --index-platforms")
	case len(opt.Platforms) == 1 && !slices.Contains(names, platforms.FormatAll(opt.Platforms[0])):
		return usageErrorf("--platform %s is not one of --index-platforms", platforms.FormatAll(opt.Platforms[0]))
	}
	return nil
}
