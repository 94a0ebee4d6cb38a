// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/export"
	"hako/internal/progress"
	"hako/internal/source"
)

// isURL tells whether a result goes to a web server instead of a file.
func isURL(path string) bool { return strings.HasPrefix(path, "https://") }

// writeDigest writes the digest of one image.
func (o *outputs) writeDigest(ctx context.Context, path string, d digest.Digest) error {
	if !isURL(path) {
		return writeResult(path, export.DigestFile(d))
	}
	return source.PutHTTP(ctx, o.http, path, export.DigestFile(d))
}

// imageID is what docker calls an image's ID.
func (p *product) imageID() digest.Digest {
	if p.bundle.Index != nil {
		return p.digest()
	}
	return p.bundle.Images[0].Config.Desc.Digest
}

// writeBuilderOutput tells Google Cloud Build, in the file "images" of the
// directory it gave, what was pushed.
func (o *outputs) writeBuilderOutput() error {
	if o.opt.BuilderOutput == "" || len(o.pushed) == 0 {
		return nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, p := range o.pushed {
		if err := enc.Encode(struct {
			Name   string        `json:"name"`
			Digest digest.Digest `json:"digest"`
		}{p.Ref, p.Digest}); err != nil {
			return fmt.Errorf("write BUILDER_OUTPUT: %w", err)
		}
	}
	return writeResult(filepath.Join(o.opt.BuilderOutput, "images"), b.Bytes())
}

// A stopwatch is a sink that adds up how long each step took.
type stopwatch struct {
	progress.Sink

	mu    sync.Mutex
	names map[digest.Digest]string
	began map[digest.Digest]time.Time
	took  map[string]time.Duration
}

func newStopwatch(sink progress.Sink) *stopwatch {
	return &stopwatch{
		Sink: sink, names: make(map[digest.Digest]string), began: make(map[digest.Digest]time.Time), took: make(map[string]time.Duration),
	}
}

// Send implements progress.Sink.
func (s *stopwatch) Send(e progress.Event) {
	s.mu.Lock()
	switch e := e.(type) {
	case progress.Started:
		s.names[e.Vertex], s.began[e.Vertex] = e.Name, e.Time
	case progress.Done:
		if began, ok := s.began[e.Vertex]; ok {
			s.took[s.names[e.Vertex]] += e.Time.Sub(began)
			delete(s.began, e.Vertex)
		}
	}
	s.mu.Unlock()
	s.Sink.Send(e)
}

// Redact passes on what the sink is to hide.
func (s *stopwatch) Redact(values ...[]byte) {
	if r, ok := s.Sink.(interface{ Redact(values ...[]byte) }); ok {
		r.Redact(values...)
	}
}

// write writes nanoseconds by step, as kaniko does.
func (s *stopwatch) write(path string, total time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took["Total Build Time"] = total
	b, err := json.Marshal(s.took)
	if err != nil {
		return fmt.Errorf("write BENCHMARK_FILE: %w", err)
	}
	return writeResult(path, b)
}
