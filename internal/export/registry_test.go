// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
	"hako/internal/layer"
	"hako/internal/registry"
	"hako/internal/store"
	"hako/internal/tree"
)

// A fakePusher notes what it is asked to push, and fails for one of it.
type fakePusher struct {
	mu    sync.Mutex
	calls []string
	from  map[string][]name.Repository
	fail  string
}

func (f *fakePusher) note(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if f.fail != "" && strings.Contains(call, f.fail) {
		return errors.New("refused")
	}
	return nil
}

func (f *fakePusher) PushBlob(ctx context.Context, dst name.Repository, desc ocispecs.Descriptor, open registry.Opener, from []name.Repository) (registry.PushResult, error) {
	r, err := open(ctx, 0)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	v := desc.Digest.Verifier()
	if _, err := io.Copy(v, r); err != nil || !v.Verified() {
		return 0, errors.New("blob is not its digest")
	}
	key := "blob " + dst.Name() + " " + desc.Digest.String()
	f.mu.Lock()
	if f.from == nil {
		f.from = map[string][]name.Repository{}
	}
	f.from[key] = from
	f.mu.Unlock()
	return registry.Uploaded, f.note(key)
}

func (f *fakePusher) StreamBlob(ctx context.Context, dst name.Repository, blob registry.Growing) {
	b, err := io.ReadAll(blob.Open(ctx))
	if err == nil {
		_ = f.note(fmt.Sprintf("stream %s %d", dst.Name(), len(b)))
	}
}

func (f *fakePusher) PushManifest(_ context.Context, ref name.Reference, _ string, _ []byte) error {
	return f.note("manifest " + ref.Name())
}

func TestPushOrder(t *testing.T) {
	t.Parallel()
	b := newBundle(t, export.Options{}, amd64, arm64)
	p := &fakePusher{}
	dst := tags(t, "one.example/aa:1", "one.example/bb:1", "one.example/aa:2", "two.example/cc:1", "one.example/aa:1")
	done, err := b.Push(t.Context(), p, dst)
	if err != nil {
		t.Fatal(err)
	}
	if want := dst[:4]; !slices.Equal(done, want) {
		t.Errorf("pushed %v, want %v", done, want)
	}
	kind := func(call string) int {
		switch {
		case strings.HasPrefix(call, "blob"):
			return 0
		case strings.Contains(call, "@"):
			return 1
		}
		return 2
	}
	if !slices.IsSortedFunc(p.calls, func(a, b string) int { return kind(a) - kind(b) }) {
		t.Errorf("not blobs, manifests, tags:\n%s", strings.Join(p.calls, "\n"))
	}
	// Three layers, one of them common, and two configs, to three repositories.
	for i, want := range []int{5 * 3, 2 * 3, 4} {
		n := 0
		for _, c := range p.calls {
			if kind(c) == i {
				n++
			}
		}
		if n != want {
			t.Errorf("%d calls of kind %d, want %d", n, i, want)
		}
	}
	key := "blob one.example/bb " + b.Images[0].Config.Desc.Digest.String()
	if got := p.from[key]; len(got) != 1 || got[0].Name() != "one.example/aa" {
		t.Errorf("second repository mounts from %v, want the first", got)
	}
}

func TestPushFailureSetsNoTag(t *testing.T) {
	t.Parallel()
	for _, fail := range []string{"blob two.example", "manifest two.example/cc@"} {
		p := &fakePusher{fail: fail}
		done, err := newBundle(t, export.Options{}, amd64, arm64).Push(t.Context(), p, tags(t, "one.example/aa:1", "two.example/cc:1"))
		if err == nil || done != nil {
			t.Errorf("%s: pushed %v, error %v", fail, done, err)
		}
		for _, c := range p.calls {
			if strings.HasPrefix(c, "manifest") && !strings.Contains(c, "@") {
				t.Errorf("%s: %s was set", fail, c)
			}
		}
	}
	p := &fakePusher{fail: "aa:2"}
	done, err := newBundle(t, export.Options{}, amd64).Push(t.Context(), p, tags(t, "one.example/aa:1", "one.example/aa:2", "one.example/aa:3"))
	if err == nil || len(done) != 1 || done[0].TagStr() != "1" {
		t.Errorf("pushed %v, error %v, want the first tag and an error", done, err)
	}
}

func TestEarly(t *testing.T) {
	t.Parallel()
	images := newImages(t, amd64)
	p := &fakePusher{}
	e := export.NewEarly(t.Context(), p, tags(t, "one.example/aa:1", "one.example/aa:2"))
	for range 3 {
		for _, l := range images[0].Ref.Layers {
			e.Start(l)
		}
	}
	if err := e.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(p.calls) != 2 {
		t.Errorf("calls %q, want each layer once", p.calls)
	}
	p.fail = "blob"
	e = export.NewEarly(t.Context(), p, tags(t, "one.example/aa:1"))
	e.Start(images[0].Ref.Layers[0])
	if err := e.Wait(); err == nil {
		t.Error("Wait does not return the push's error")
	}
	images[0].Ref.Layers[1].Origin = "one.example/base"
	p = &fakePusher{}
	e = export.NewEarly(t.Context(), p, tags(t, "one.example/aa:1"))
	e.Start(images[0].Ref.Layers[1])
	e.Stop()
	for key, from := range p.from {
		if len(from) != 1 || from[0].Name() != "one.example/base" {
			t.Errorf("%s mounts from %v, want its origin", key, from)
		}
	}
}

// A layer that is being written goes to one repository of each registry, and to
// none twice; nothing goes on after Stop.
func TestEarlyFollow(t *testing.T) {
	t.Parallel()
	const size = 18 << 20
	large := file("large", "", 0o644)
	large.Size = size
	large.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(rand.NewChaCha8([32]byte{}), size)), nil
	}
	write := func(told func(*layer.Growing)) (*layer.Layer, error) {
		st, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return layer.Write(t.Context(), st, func(yield func(tree.Change, error) bool) { yield(large, nil) }, layer.WriteOptions{Level: 1, Growing: told})
	}
	p := &fakePusher{}
	one := export.NewEarly(t.Context(), p, tags(t, "one.example/aa:1", "one.example/bb:1", "two.example/cc:1"))
	other := export.NewEarly(t.Context(), p, tags(t, "two.example/cc:2", "one.example/bb:2"))
	l, err := write(func(g *layer.Growing) {
		sentTo := map[string]bool{}
		one.Follow(g, sentTo)
		other.Follow(g, sentTo)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []*export.Early{one, other} {
		if err := e.Wait(); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(p.calls)
	var want []string
	for _, repo := range []string{"one.example/aa", "one.example/bb", "two.example/cc"} {
		want = append(want, fmt.Sprintf("stream %s %d", repo, l.Descriptor().Size))
	}
	if !slices.Equal(p.calls, want) {
		t.Errorf("calls %q, want %q", p.calls, want)
	}
	p = &fakePusher{}
	e := export.NewEarly(t.Context(), p, tags(t, "one.example/aa:1"))
	_, err = write(func(g *layer.Growing) {
		e.Follow(g, map[string]bool{})
		e.Stop()
	})
	if err != nil || len(p.calls) > 0 {
		t.Errorf("error %v, calls %q after Stop", err, p.calls)
	}
}

// TestPushRegistry pushes to a real registry and lets another library check the image.
func TestPushRegistry(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(quietLog())))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	c, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, docker := range []bool{false, true} {
		dst := tags(t, host+"/one:1", host+"/many:1", host+"/other:1")
		if _, err := newBundle(t, export.Options{Docker: docker}, amd64).Push(t.Context(), c, dst[:1]); err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(dst[0], remote.WithTransport(http.DefaultTransport))
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		many := newBundle(t, export.Options{Docker: docker}, amd64, arm64)
		if _, err := many.Push(t.Context(), c, dst[1:]); err != nil {
			t.Fatal(err)
		}
		for _, tag := range dst[1:] {
			idx, err := remote.Index(tag)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(idx); err != nil {
				t.Error(err)
			}
			if d, _ := idx.Digest(); d.String() != many.Root().Desc.Digest.String() {
				t.Errorf("%s has the digest %s, want %s", tag, d, many.Root().Desc.Digest)
			}
		}
	}
}
