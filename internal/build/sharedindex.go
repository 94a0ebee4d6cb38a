// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
	"hako/internal/image"
	"hako/internal/progress"
	"hako/internal/registry"
)

// A SharedIndex is an index that several builds make together, each for one
// platform: none knows of the others but through the registry.
//
// A build pushes its image as TAG-os-arch, then looks which of these tags are
// there. The one that finds all of them makes the index. If two builds end at
// the same time both do, and write the same bytes.
type SharedIndex struct {
	// Tags are what the index is to be called; the builds' own tags are made
	// from the first. There is one at least for a shared index to be made.
	Tags []string
	// Platforms are all that the index has, in any order.
	Platforms []ocispecs.Platform
	// ID is what the builds of one index have in common, and no others: what an
	// older build left under the same tags is not taken.
	ID string
}

// What a build notes on its own tag, which is an index with one entry: the
// image in it is the same as that of any other build.
const (
	annotationID        = "hako.index.id"
	annotationPlatforms = "hako.index.platforms"
)

func (s *SharedIndex) isSet() bool { return len(s.Tags) > 0 }

// prepare makes the options those of the build of one platform, the one asked
// for or this machine's, and returns the tags of the index.
func (s *SharedIndex) prepare(opt *Options) ([]name.Tag, error) {
	var tags []name.Tag
	for _, t := range s.Tags {
		tag, err := destination(t)
		if err != nil {
			return nil, err
		}
		tags = append(tags, tag)
	}
	if !s.isSet() {
		return nil, nil
	}
	if len(opt.Platforms) == 0 {
		opt.Platforms = []ocispecs.Platform{hostPlatform()}
		if !slices.Contains(s.list(), formatPlatform(opt.Platforms[0])) {
			return nil, fmt.Errorf("index %s: this machine is %s, and the index is for %s: name with --platform what is to be built here",
				s.Tags[0], formatPlatform(opt.Platforms[0]), strings.Join(s.list(), ", "))
		}
	}
	part, err := s.part(formatPlatform(opt.Platforms[0]))
	opt.Destinations = []string{part.Name()}
	return tags, err
}

// list returns the platforms by name, sorted.
func (s *SharedIndex) list() []string {
	var list []string
	for _, p := range s.Platforms {
		list = append(list, formatPlatform(platforms.Normalize(p)))
	}
	slices.Sort(list)
	return list
}

// part returns the tag that the build of one platform sets.
func (s *SharedIndex) part(platform string) (name.Tag, error) {
	tag, err := destination(s.Tags[0])
	if err != nil {
		return tag, err
	}
	part, err := name.NewTag(tag.Name() + "-" + strings.ReplaceAll(platform, "/", "-"))
	if err != nil {
		return tag, fmt.Errorf("index %s: the tag of its %s image: %w", s.Tags[0], platform, err)
	}
	return part, nil
}

// annotations replaces those for the index, which is made of several builds, by
// what this build notes on its part.
func (s *SharedIndex) annotations(list []image.Annotation) []image.Annotation {
	if !s.isSet() {
		return list
	}
	list = slices.DeleteFunc(slices.Clone(list), onIndex)
	return append(list,
		image.Annotation{Level: image.OnIndex, Key: annotationID, Value: s.ID},
		image.Annotation{Level: image.OnIndex, Key: annotationPlatforms, Value: strings.Join(s.list(), ",")},
	)
}

func onIndex(a image.Annotation) bool { return a.Level == image.OnIndex }

// A sharedState is what the registry has of a shared index.
type sharedState struct {
	members        []export.Member
	there, missing []string // platforms
	others         []string // tags that are there and not of these builds
}

// complete makes the index if the images of all platforms are there, and says
// what is there if not.
func (o *outputs) complete(ctx context.Context, res *Result) (err error) {
	s := &o.opt.SharedIndex
	if !s.isSet() {
		return nil
	}
	what := "index " + s.Tags[0]
	task := progress.Start(o.sink, digest.FromString(what), what)
	defer func() { task.Done(err) }()
	state, err := s.look(ctx, o.client)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	task.Logf("%s: %s", what, state)
	if len(state.missing) > 0 {
		return nil
	}
	joined, err := export.Join(state.members, slices.DeleteFunc(imageAnnotations(o.opt.Annotations), func(a image.Annotation) bool { return !onIndex(a) }))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, tag := range o.shared {
		if err := pushIndex(ctx, o.client, joined, tag); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		res.Pushed = append(res.Pushed, Pushed{Ref: tag.Name(), Digest: joined.Index.Desc.Digest})
	}
	o.index, o.pushed = joined.Index.Desc.Digest, res.Pushed
	return nil
}

// look reads the tags of all platforms.
func (s *SharedIndex) look(ctx context.Context, client *registry.Client) (*sharedState, error) {
	state := &sharedState{}
	for _, platform := range s.list() {
		tag, err := s.part(platform)
		if err != nil {
			return nil, err
		}
		m, err := client.FetchManifest(ctx, tag)
		if errors.Is(err, registry.ErrNotFound) {
			state.missing = append(state.missing, platform)
			continue
		}
		if err != nil {
			return nil, err
		}
		if why := s.isOther(m); why != "" {
			state.missing = append(state.missing, platform)
			state.others = append(state.others, tag.TagStr()+" is of "+why)
			continue
		}
		members, err := export.Members(ctx, export.Repository{Client: client, Repo: tag.Context()}, m.Digest)
		if err != nil {
			return nil, err
		}
		if len(members) != 1 || formatPlatform(platforms.Normalize(*members[0].Desc.Platform)) != platform {
			return nil, fmt.Errorf("%s is not the image for %s alone that a build with --index-tag pushes", tag.Name(), platform)
		}
		state.members = append(state.members, members...)
		state.there = append(state.there, platform)
	}
	return state, nil
}

// isOther says what else than this build a part was pushed by; "" for this one.
func (s *SharedIndex) isOther(m *registry.Manifest) string {
	var x ocispecs.Index
	if !m.IsIndex() || json.Unmarshal(m.Raw, &x) != nil || x.Annotations[annotationID] == "" {
		return "no build with --index-tag"
	}
	if id := x.Annotations[annotationID]; id != s.ID {
		return fmt.Sprintf("another build (--index-id %s)", id)
	}
	if list := x.Annotations[annotationPlatforms]; list != strings.Join(s.list(), ",") {
		return fmt.Sprintf("an index for other platforms (--index-platforms %s)", list)
	}
	return ""
}

// String tells how far the index is.
func (s *sharedState) String() string {
	text := fmt.Sprintf("%d of %d platforms there", len(s.there), len(s.there)+len(s.missing))
	if len(s.missing) == 0 {
		return text
	}
	who := "the build of " + s.missing[0]
	if len(s.missing) > 1 {
		who = "the last of the builds of " + strings.Join(s.missing, ", ")
	}
	text += fmt.Sprintf(" (%s); %s will complete it", strings.Join(s.there, ", "), who)
	if len(s.others) > 0 {
		text += "; not taken: " + strings.Join(s.others, ", ")
	}
	return text
}
