// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Result is what a build came to.
type Result struct {
	// Images are the images built: for each target one per platform, in the
	// order asked.
	Images []Image
	// Digest is that of the first target's manifest, or of its index if there
	// are several platforms.
	Digest digest.Digest
	// Pushed lists every destination that has the image now.
	Pushed []Pushed
	// Answer is the text asked for with Options.Call, for standard output.
	Answer []byte
	// Plan is set if Options.Call asked for it, even if the build would fail.
	Plan *Plan
	// Status is the exit code that goes with Answer: not 0 if a check found something.
	Status  int
	Summary Summary
	// Cache tells what became of each step, if there was a cache.
	Cache []CacheOutcome
}

// An Image is the image of one platform.
type Image struct {
	Target   string // stage, "" for the last one
	Platform ocispecs.Platform
	Desc     ocispecs.Descriptor // of the manifest
	Config   []byte
}

// Pushed is one reference that was pushed.
type Pushed struct {
	Ref    string // registry/repository:tag
	Digest digest.Digest
}

// A Summary holds the figures of the closing line; zero means not known.
type Summary struct {
	Steps      int // that could have been cached
	Cached     int
	Downloaded int64 // bytes
	Uploaded   int64
	PeakMemory int64
	DiskHigh   int64
	Elapsed    time.Duration
}
